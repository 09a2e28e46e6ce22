/** Calls that make, list, stop and end domains. */
import {
  CDF,
  CreateDomain15,
  type CreateDomainInit,
  createDomainLayout,
  DOMINF,
  DOMINF_SHUTDOWN_SHIFT,
  EvtchnAllocUnbound,
  EVTCHNOP,
  GetDomainInfo,
  GetDomainInfoList,
  GRANT_VERSION_2,
  HYPERCALL,
  MaxMem,
  MaxVcpus,
  PagingMempool,
  SCHEDOP,
  SchedRemoteShutdown,
  Subscribe,
  SYSCTL,
  X86_EMU_LAPIC,
} from "../abi/mod.ts";
import { errno } from "../errors.ts";
import { DOM0, type Domid, type Gfn, PAGE_BYTES, type Port } from "../ports.ts";
import type { ValueOf } from "../struct.ts";
import type { DomainInfo, Xen } from "../xen_api.ts";
import { checked, type Invoker } from "./invoke.ts";

const LIST_BATCH = 1024;
/** libxl's default: two-level event channels need no more. */
const DEFAULT_MAX_PORT = 1023;
/** "The host's default" for grant frames and maptrack frames. */
const HOST_DEFAULT = -1;

type DomainCalls = Pick<
  Xen,
  | "createDomain"
  | "destroyDomain"
  | "pauseDomain"
  | "unpauseDomain"
  | "resumeDomain"
  | "shutdownDomain"
  | "domainInfo"
  | "listDomains"
  | "setMaxVcpus"
  | "setMaxMemory"
  | "setPagingMempool"
  | "allocateUnbound"
  | "subscribeSuspend"
>;

export function domainCalls(invoker: Invoker): DomainCalls {
  return {
    createDomain({ vcpus, handle, maxEventChannelPort = DEFAULT_MAX_PORT }) {
      if (handle.byteLength !== 16) throw new RangeError("a domain's handle is 16 bytes");
      const init: CreateDomainInit = {
        handle,
        flags: CDF.hvm | CDF.hap,
        max_vcpus: vcpus,
        max_evtchn_port: maxEventChannelPort,
        max_grant_frames: HOST_DEFAULT,
        max_maptrack_frames: HOST_DEFAULT,
        grant_opts: GRANT_VERSION_2,
        arch: { emulation_flags: X86_EMU_LAPIC },
      };
      const layout = createDomainLayout(invoker.interfaces.domctl);
      const u = layout === CreateDomain15 ? CreateDomain15.encode(init) : layout.encode(init);
      // Domain 0 asks Xen to choose the number.
      const { result, domain } = invoker.tryDomctl("createdomain", DOM0, u);
      checked(`create a domain of ${vcpus} vCPUs`, result);
      return domain as Domid;
    },

    destroyDomain: (domid) => void invoker.domctl(`destroy domain ${domid}`, "destroydomain", domid),
    pauseDomain: (domid) => void invoker.domctl(`pause domain ${domid}`, "pausedomain", domid),
    unpauseDomain: (domid) => void invoker.domctl(`unpause domain ${domid}`, "unpausedomain", domid),
    resumeDomain: (domid) => void invoker.domctl(`resume domain ${domid}`, "resumedomain", domid),

    shutdownDomain(domid, reason) {
      const argument = SchedRemoteShutdown.encode({ domain_id: domid, reason });
      invoker.command(`shut down domain ${domid}`, HYPERCALL.sched_op, SCHEDOP.remote_shutdown, argument);
    },

    domainInfo(domid) {
      const { result, u } = invoker.tryDomctl("getdomaininfo", domid);
      if (result === -errno("ESRCH")) return undefined;
      checked(`read the state of domain ${domid}`, result);
      const info = GetDomainInfo.decode(u);
      // Xen 4.17 answers for the next higher domain when this one is gone.
      return info.domain === domid ? domainInfo(info) : undefined;
    },

    listDomains() {
      const domains: DomainInfo[] = [];
      for (let first = 0;;) {
        const buffer = invoker.buffer(LIST_BATCH * GetDomainInfo.size);
        const u = GetDomainInfoList.encode({ first_domain: first, max_domains: LIST_BATCH, buffer: buffer.address });
        const answer = GetDomainInfoList.decode(invoker.sysctl("list the domains", SYSCTL.getdomaininfolist, u));
        const count = Math.min(answer.num_domains, LIST_BATCH);
        for (let index = 0; index < count; index++) {
          domains.push(domainInfo(GetDomainInfo.decode(buffer.bytes, index * GetDomainInfo.size)));
        }
        const last = domains.at(-1);
        if (count < LIST_BATCH || last === undefined || last.domid < first) return domains;
        first = last.domid + 1;
      }
    },

    setMaxVcpus(domid, vcpus) {
      invoker.domctl(`give domain ${domid} ${vcpus} vCPUs`, "max_vcpus", domid, MaxVcpus.encode({ max: vcpus }));
    },

    setMaxMemory(domid, kib) {
      const u = MaxMem.encode({ max_memkb: kib });
      invoker.domctl(`limit domain ${domid} to ${kib} KiB`, "max_mem", domid, u);
    },

    setPagingMempool(domid, byteLength) {
      const page = BigInt(PAGE_BYTES);
      const size = (byteLength + page - 1n) / page * page;
      const operation = `give domain ${domid} a paging pool of ${size} bytes`;
      invoker.domctl(operation, "set_paging_mempool_size", domid, PagingMempool.encode({ size }));
    },

    allocateUnbound(domid, remote) {
      const argument = EvtchnAllocUnbound.encode({ dom: domid, remote_dom: remote });
      const operation = `allocate an event channel in domain ${domid}`;
      invoker.command(operation, HYPERCALL.event_channel_op, EVTCHNOP.alloc_unbound, argument);
      return EvtchnAllocUnbound.decode(argument).port as Port;
    },

    subscribeSuspend(domid, port) {
      const operation = `subscribe to the suspend of domain ${domid}`;
      invoker.domctl(operation, "subscribe", domid, Subscribe.encode({ port }));
    },
  };
}

function domainInfo(info: ValueOf<typeof GetDomainInfo>): DomainInfo {
  const has = (flag: number) => (info.flags & flag) !== 0;
  return {
    domid: info.domain as Domid,
    dying: has(DOMINF.dying),
    hvm: has(DOMINF.hvm_guest),
    hap: has(DOMINF.hap),
    paused: has(DOMINF.paused),
    blocked: has(DOMINF.blocked),
    running: has(DOMINF.running),
    shutdown: has(DOMINF.shutdown),
    shutdownReason: (info.flags >>> DOMINF_SHUTDOWN_SHIFT) & 0xff,
    totalPages: info.tot_pages,
    maxPages: info.max_pages,
    pagedPages: info.paged_pages,
    sharedInfoGfn: info.shared_info_frame as Gfn,
    cpuTimeNs: info.cpu_time,
    onlineVcpus: info.nr_online_vcpus,
    maxVcpuId: info.max_vcpu_id,
    handle: info.handle,
  };
}
