/** `snowflock doctor`: whether this host can fork, and what to do if not. */
import type { Finding } from "./finding.ts";
import { checkModules } from "./modules.ts";
import type { DoctorPorts } from "./ports.ts";
import { checkXen } from "./xen_checks.ts";

/** All checks, in the order in which to mend. Never rejects for what it finds. */
export async function examine(ports: DoctorPorts): Promise<readonly Finding[]> {
  return [
    checkRoot(ports),
    await checkDom0(ports),
    await checkPv(ports),
    ...checkXen(ports),
    await checkDevices(ports),
    ...await checkModules(ports),
    await checkXenstored(ports),
  ];
}

function checkRoot(ports: DoctorPorts): Finding {
  if (ports.uid() === 0) return { check: "root", status: "ok", detail: "user 0" };
  return {
    check: "root",
    status: "fail",
    detail: `user ${ports.uid()}`,
    remedy: "Run it as root: sudo snowflock doctor",
  };
}

async function checkDom0(ports: DoctorPorts): Promise<Finding> {
  const check = "dom0";
  const capabilities = await ports.readText("/proc/xen/capabilities");
  if (capabilities === undefined) {
    const underXen = (await ports.readText("/sys/hypervisor/type"))?.trim() === "xen";
    return {
      check,
      status: "fail",
      detail: underXen ? "/proc/xen is not mounted" : "this machine does not run under Xen",
      remedy: underXen
        ? "mount -t xenfs xenfs /proc/xen"
        : "Install Xen (apt-get install xen-system-amd64) and choose it in the boot menu",
    };
  }
  if (capabilities.includes("control_d")) return { check, status: "ok", detail: "this is the control domain" };
  return { check, status: "fail", detail: "this is a guest", remedy: "Run it in dom0" };
}

async function checkPv(ports: DoctorPorts): Promise<Finding> {
  const check = "PV dom0";
  const type = (await ports.readText("/sys/hypervisor/guest_type"))?.trim();
  if (type === "PV") return { check, status: "ok", detail: "dom0 is paravirtualised" };
  if (type === undefined) return { check, status: "skipped", detail: "no /sys/hypervisor/guest_type" };
  return {
    check,
    status: "fail",
    detail: `dom0 is ${type}: Xen refuses it paging rings`,
    remedy: "Remove dom0=pvh from Xen's command line",
  };
}

async function checkDevices(ports: DoctorPorts): Promise<Finding> {
  const check = "devices";
  const paths = ["privcmd", "hypercall", "evtchn", "gntdev"].map((name) => `/dev/xen/${name}`);
  const missing: string[] = [];
  for (const path of paths) if (!await ports.exists(path)) missing.push(path);
  if (missing.length === 0) return { check, status: "ok", detail: paths.join(", ") };
  return {
    check,
    status: "fail",
    detail: `missing: ${missing.join(", ")}`,
    remedy: "modprobe -a xen-privcmd xen-evtchn xen-gntdev; the kernel must be 4.18 or later",
  };
}

async function checkXenstored(ports: DoctorPorts): Promise<Finding> {
  const check = "xenstored";
  try {
    await ports.askXenstored();
    return { check, status: "ok", detail: "answers" };
  } catch (error) {
    return {
      check,
      status: "fail",
      detail: error instanceof Error ? error.message : String(error),
      remedy: "systemctl start xenstored (or xen.service), and look at its log",
    };
  }
}
