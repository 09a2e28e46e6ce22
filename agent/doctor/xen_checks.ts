/** Checks that ask the hypervisor. */
import { interfaceVersions, KNOWN_RELEASES } from "../../hypercall/abi/versions.ts";
import { errno } from "../../hypercall/errors.ts";
import type { Domid, Gfn } from "../../hypercall/ports.ts";
import type { Xen } from "../../hypercall/xen_api.ts";
import type { Finding } from "./finding.ts";
import type { DoctorPorts } from "./ports.ts";

/** No domain has it: the last before the reserved ones (DOMID_FIRST_RESERVED is 0x7ff0, public/xen.h). */
const NOBODY = 0x7fef as Domid;
const MIB_PAGES = 256n;
const NAMES = ["Xen version", "memory paging", "HAP", "free memory"] as const;

export function checkXen(ports: DoctorPorts): Finding[] {
  let xen: Xen & Disposable;
  try {
    xen = ports.openXen();
  } catch (error) {
    return [
      {
        check: "Xen",
        status: "fail",
        detail: error instanceof Error ? error.message : String(error),
        remedy: "Boot this machine under Xen, and run this in dom0 as root",
      },
      ...NAMES.map((check): Finding => ({ check, status: "skipped", detail: "Xen cannot be asked" })),
    ];
  }
  using opened = xen;
  const checks = [versionOf, pagingOf, hapOf, memoryOf];
  return checks.map((check, index) => {
    try {
      return check(opened);
    } catch (error) {
      const detail = error instanceof Error ? error.message : String(error);
      return { check: NAMES[index] ?? "Xen", status: "fail", detail, remedy: "Look into `xl dmesg`" };
    }
  });
}

function versionOf(xen: Xen): Finding {
  const check = NAMES[0];
  const { major, minor, extra } = xen.version;
  const version = `${major}.${minor}${extra}`;
  const interfaces = interfaceVersions(major, minor);
  if (interfaces === undefined) {
    const remedy = `Use one of ${KNOWN_RELEASES.join(", ")}, or a newer snowflock`;
    return { check, status: "fail", detail: `the interfaces of ${version} are not known`, remedy };
  }
  // A call that Xen checks the interface version of.
  xen.physicalInfo();
  return { check, status: "ok", detail: `${version}, domctl interface 0x${interfaces.domctl.toString(16)}` };
}

/**
 * A paging operation on a domain that does not exist: ESRCH where paging is built in, ENOSYS where it is not
 * (xen/arch/x86/mm/mem_paging.c and the switch above it).
 */
function pagingOf(xen: Xen): Finding {
  const check = NAMES[1];
  const result = xen.prep(NOBODY, 0n as Gfn, 0n);
  if (result === -errno("ESRCH")) return { check, status: "ok", detail: "built in" };
  if (result === -errno("ENOSYS") || result === -errno("EOPNOTSUPP")) {
    return {
      check,
      status: "fail",
      detail: "this Xen was built without CONFIG_MEM_PAGING",
      remedy:
        "Build Xen from your distribution's source with CONFIG_EXPERT=y CONFIG_UNSUPPORTED=y CONFIG_MEM_PAGING=y in xen/.config",
    };
  }
  return { check, status: "warning", detail: `cannot be told: a paging operation gave ${result}` };
}

function hapOf(xen: Xen): Finding {
  const check = NAMES[2];
  const { hvm, hap } = xen.physicalInfo();
  if (hvm && hap) return { check, status: "ok", detail: "hardware-assisted paging" };
  return {
    check,
    status: "fail",
    detail: hvm ? "no hardware-assisted paging" : "no hardware virtualisation",
    remedy: "Enable VT-x with EPT, or AMD-V with NPT, in the firmware; remove hap=0 from Xen's command line",
  };
}

function memoryOf(xen: Xen): Finding {
  const check = NAMES[3];
  const { freePages, totalPages } = xen.physicalInfo();
  const freeMib = freePages / MIB_PAGES;
  const detail = `${freeMib} MiB of ${totalPages / MIB_PAGES} MiB`;
  if (freeMib >= 256n) return { check, status: "ok", detail };
  return {
    check,
    status: freeMib < 32n ? "fail" : "warning",
    detail: `${detail}: room for few clones`,
    remedy: "Bound dom0's memory with dom0_mem=SIZE,max:SIZE on Xen's command line, or `xl mem-set 0 SIZE`",
  };
}
