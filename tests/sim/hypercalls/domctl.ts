/** XEN_DOMCTL_*: the envelope, and commands on a domain's life. */
import {
  CDF,
  createDomainLayout,
  DOMCTL,
  Domctl,
  GetDomainInfo,
  MaxMem,
  MaxVcpus,
  PagingMempool,
  Subscribe,
  X86_EMU_LAPIC,
} from "../../../hypercall/abi/mod.ts";
import { PAGE_BYTES } from "../../../hypercall/ports.ts";
import type { Domain } from "../domain.ts";
import { no } from "../errno.ts";
import { type CallContext, callName, faultyCall, type NamedCall, viewAt } from "./context.ts";
import { dom0Info } from "./dom0_info.ts";
import { performOnState } from "./domctl_state.ts";

/** "HVM with everything": all emulated devices but VPCI. */
const EMULATE_ALL = 0x3ff;
const GRANT_VERSION_MASK = 0xf;
const MAX_VCPUS = 128;

export function domctl(context: CallContext, address: bigint): NamedCall {
  const envelope = viewAt(context, Domctl, address);
  if (envelope === undefined) return faultyCall("domctl");
  const name = callName("domctl", DOMCTL, envelope.cmd);
  if (envelope.interface_version !== context.xen.interfaces.domctl) return { name, perform: () => no("EACCES") };
  return {
    name,
    perform() {
      const { cmd, domain: domid, u } = envelope;
      if (cmd === DOMCTL.createdomain) {
        const created = createDomain(context, domid, u);
        if (typeof created === "number") return created;
        envelope.domain = created.domid;
        return 0;
      }
      if (cmd === DOMCTL.getdomaininfo) {
        const info = findInfo(context, domid);
        if (info === undefined) return no("ESRCH");
        u.set(info);
        envelope.domain = GetDomainInfo.view(info).domain;
        return 0;
      }
      const domain = context.xen.find(domid);
      if (domain === undefined) return domid === 0 ? no("EINVAL") : no("ESRCH");
      return perform(context, cmd, domain, u);
    },
  };
}

function createDomain(context: CallContext, domid: number, u: Uint8Array): Domain | number {
  const argument = createDomainLayout(context.xen.interfaces.domctl).decode(u);
  if (argument.flags !== (CDF.hvm | CDF.hap)) return no("EINVAL");
  const emulation = argument.arch.emulation_flags;
  if (emulation !== X86_EMU_LAPIC && emulation !== EMULATE_ALL) return no("EOPNOTSUPP");
  const grantVersion = argument.grant_opts & GRANT_VERSION_MASK;
  if (argument.max_vcpus < 1 || argument.max_vcpus > MAX_VCPUS || grantVersion < 1 || grantVersion > 2) {
    return no("EINVAL");
  }
  return context.xen.createDomain({
    domid,
    handle: argument.handle,
    vcpus: argument.max_vcpus,
    maxPort: argument.max_evtchn_port,
    maxGrantFrames: argument.max_grant_frames,
    emulationFlags: emulation,
  });
}

/** Until 4.21 Xen answers for the next higher domain when this one is not there. */
function findInfo({ xen }: CallContext, domid: number): Uint8Array | undefined {
  if (domid === 0) return dom0Info(xen);
  const exact = xen.find(domid);
  if (exact !== undefined || xen.minor >= 22) return exact?.info();
  return xen.domains().find((domain) => domain.domid > domid)?.info();
}

function perform(context: CallContext, command: number, domain: Domain, u: Uint8Array): number {
  switch (command) {
    case DOMCTL.destroydomain:
      domain.destroy();
      return 0;
    case DOMCTL.pausedomain:
      return domain.pause();
    case DOMCTL.unpausedomain:
      return domain.unpause();
    case DOMCTL.resumedomain:
      domain.resume();
      return 0;
    case DOMCTL.max_vcpus:
      return domain.makeVcpus(MaxVcpus.decode(u).max);
    case DOMCTL.max_mem:
      domain.memory.maxPages = Number(MaxMem.decode(u).max_memkb * 1024n / BigInt(PAGE_BYTES));
      return 0;
    case DOMCTL.subscribe:
      domain.suspendPort = Subscribe.decode(u).port;
      return 0;
    case DOMCTL.get_paging_mempool_size:
      PagingMempool.view(u).size = BigInt(domain.memory.p2m.poolPages * PAGE_BYTES);
      return 0;
    case DOMCTL.set_paging_mempool_size: {
      const { size } = PagingMempool.decode(u);
      if (size % BigInt(PAGE_BYTES) !== 0n) return no("EINVAL");
      return domain.memory.setPool(Number(size / BigInt(PAGE_BYTES))) ? 0 : no("ENOMEM");
    }
    case DOMCTL.setdomainhandle:
      domain.config.handle.set(u.subarray(0, 16));
      return 0;
    case DOMCTL.settimeoffset:
      return 0;
    default:
      return performOnState(context, command, domain, u);
  }
}
