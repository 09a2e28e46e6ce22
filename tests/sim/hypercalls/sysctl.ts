/** XEN_SYSCTL_*: commands on the host. */
import {
  GetDomainInfo,
  GetDomainInfoList,
  PHYSCAP,
  PhysInfo,
  SYSCTL,
  Sysctl,
  SysctlCpuPolicy,
} from "../../../hypercall/abi/mod.ts";
import { no } from "../errno.ts";
import { type CallContext, callName, faultyCall, type NamedCall, viewAt } from "./context.ts";
import { copyPolicy } from "./cpu_policy.ts";
import { dom0Info } from "./dom0_info.ts";

const CPU_KHZ = 2_400_000;

export function sysctl(context: CallContext, address: bigint): NamedCall {
  const envelope = viewAt(context, Sysctl, address);
  if (envelope === undefined) return faultyCall("sysctl");
  const name = callName("sysctl", SYSCTL, envelope.cmd);
  if (envelope.interface_version !== context.xen.interfaces.sysctl) return { name, perform: () => no("EACCES") };
  return { name, perform: () => perform(context, envelope.cmd, envelope.u) };
}

function perform(context: CallContext, command: number, u: Uint8Array): number {
  const { xen } = context;
  switch (command) {
    case SYSCTL.physinfo: {
      const cpus = xen.options.cpus ?? 4;
      PhysInfo.encodeInto(
        {
          threads_per_core: 1,
          cores_per_socket: cpus,
          nr_cpus: cpus,
          max_cpu_id: cpus - 1,
          nr_nodes: 1,
          cpu_khz: CPU_KHZ,
          capabilities: PHYSCAP.hvm | PHYSCAP.pv | PHYSCAP.hap,
          total_pages: BigInt(xen.memory.totalPages),
          free_pages: BigInt(xen.memory.freePages),
        },
        u,
      );
      return 0;
    }
    case SYSCTL.getdomaininfolist:
      return list(context, u);
    case SYSCTL.get_cpu_policy: {
      const argument = SysctlCpuPolicy.view(u);
      if (argument.index > 5) return no("ENOENT");
      return copyPolicy(context, argument, xen.cpuPolicy);
    }
    default:
      return no("ENOSYS");
  }
}

function list(context: CallContext, u: Uint8Array): number {
  const argument = GetDomainInfoList.view(u);
  const infos = [dom0Info(context.xen), ...context.xen.domains().map((domain) => domain.info())]
    .filter((info) => GetDomainInfo.view(info).domain >= argument.first_domain)
    .slice(0, argument.max_domains);
  const buffer = context.space.resolve(argument.buffer, infos.length * GetDomainInfo.size);
  if (buffer === undefined) return no("EFAULT");
  infos.forEach((info, index) => buffer.set(info, index * GetDomainInfo.size));
  argument.num_domains = infos.length;
  return 0;
}
