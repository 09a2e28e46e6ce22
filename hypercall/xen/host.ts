/** Calls about the host: version, capabilities, memory, the CPU policies that it can offer. */
import {
  CAPABILITIES_BYTES,
  EXTRAVERSION_BYTES,
  HYPERCALL,
  interfaceVersions,
  KNOWN_RELEASES,
  PHYSCAP,
  PhysInfo,
  SYSCTL,
  SysctlCpuPolicy,
  XENVER,
} from "../abi/mod.ts";
import { errno, XenError } from "../errors.ts";
import { type HypercallPort, PAGE_BYTES } from "../ports.ts";
import type { Xen } from "../xen_api.ts";
import { readCpuPolicy } from "./context.ts";
import { checked, type Invoker } from "./invoke.ts";

/** The hypervisor's version, and the interfaces that it speaks. Throws for a release whose layouts are not known. */
export function detect(port: HypercallPort) {
  const number = checked("read Xen's version", Number(port.call(HYPERCALL.xen_version, BigInt(XENVER.version), 0n)));
  const major = number >>> 16;
  const minor = number & 0xffff;
  const interfaces = interfaceVersions(major, minor);
  if (interfaces === undefined) {
    const known = KNOWN_RELEASES.join(", ");
    throw new XenError(`use Xen ${major}.${minor}, whose interfaces are not among ${known}`, errno("EOPNOTSUPP"));
  }
  using memory = port.allocate(PAGE_BYTES);
  checked(
    "read Xen's extra version",
    Number(port.call(HYPERCALL.xen_version, BigInt(XENVER.extraversion), memory.address)),
  );
  return { version: { major, minor, extra: text(memory.bytes.subarray(0, EXTRAVERSION_BYTES)) }, interfaces };
}

export function hostCalls(invoker: Invoker): Pick<Xen, "capabilities" | "physicalInfo" | "systemCpuPolicy"> {
  return {
    capabilities() {
      const answer = new Uint8Array(CAPABILITIES_BYTES);
      invoker.command("read Xen's capabilities", HYPERCALL.xen_version, XENVER.capabilities, answer);
      return text(answer);
    },

    physicalInfo() {
      const info = PhysInfo.decode(
        invoker.sysctl("read the host's memory and CPUs", SYSCTL.physinfo, PhysInfo.encode({})),
      );
      return {
        hvm: (info.capabilities & PHYSCAP.hvm) !== 0,
        hap: (info.capabilities & PHYSCAP.hap) !== 0,
        cpus: info.nr_cpus,
        cpuKhz: info.cpu_khz,
        totalPages: info.total_pages,
        freePages: info.free_pages,
      };
    },

    systemCpuPolicy(index) {
      const operation = `read the host's CPU policy ${index}`;
      return readCpuPolicy(invoker, operation, (pointers) => {
        const u = SysctlCpuPolicy.encode({ index, ...pointers });
        return SysctlCpuPolicy.decode(invoker.sysctl(operation, SYSCTL.get_cpu_policy, u));
      });
    },
  };
}

/** A NUL-terminated string of ASCII. */
function text(bytes: Uint8Array): string {
  const end = bytes.indexOf(0);
  return new TextDecoder().decode(end < 0 ? bytes : bytes.subarray(0, end)).trim();
}
