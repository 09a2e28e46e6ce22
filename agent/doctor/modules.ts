/** Kernel modules: whether what the agent needs is there, from /proc/modules and /lib/modules. */
import type { DoctorPorts } from "./ports.ts";
import type { Finding } from "./finding.ts";

interface Needed {
  readonly name: string;
  readonly purpose: string;
  /** The agent opens its device or the kernel must know it when a clone starts: loaded, not only there. */
  readonly loaded: boolean;
}

const NEEDED: readonly Needed[] = [
  { name: "xen-evtchn", purpose: "event channels, /dev/xen/evtchn", loaded: true },
  { name: "xen-gntdev", purpose: "grants, /dev/xen/gntdev", loaded: true },
  { name: "xen-netback", purpose: "clones' network devices", loaded: true },
  { name: "xen-blkback", purpose: "clones' disks from the kernel", loaded: true },
  { name: "bridge", purpose: "families' networks", loaded: false },
  { name: "vxlan", purpose: "families' networks over several hosts", loaded: false },
];

export async function checkModules(ports: DoctorPorts): Promise<Finding[]> {
  const release = (await ports.readText("/proc/sys/kernel/osrelease"))?.trim() ?? "unknown";
  const directory = `/lib/modules/${release}`;
  const loaded = new Set(
    (await ports.readText("/proc/modules") ?? "").split("\n").map((line) => canonical(line.split(" ")[0] ?? "")),
  );
  const builtin = modulesOf(await ports.readText(`${directory}/modules.builtin`) ?? "");
  const available = modulesOf(await ports.readText(`${directory}/modules.dep`) ?? "");
  return NEEDED.map(({ name, purpose, loaded: mustBeLoaded }) => {
    const check = `module ${name}`;
    const key = canonical(name);
    if (loaded.has(key)) return { check, status: "ok", detail: "loaded" };
    if (builtin.has(key)) return { check, status: "ok", detail: "built in" };
    if (!available.has(key)) {
      return {
        check,
        status: mustBeLoaded ? "fail" : "warning",
        detail: `not in kernel ${release}; needed for ${purpose}`,
        remedy: "Install a kernel that has it, such as Debian's linux-image-amd64",
      };
    }
    if (!mustBeLoaded) return { check, status: "ok", detail: "loaded when needed" };
    return {
      check,
      status: "fail",
      detail: `not loaded; needed for ${purpose}`,
      remedy: `modprobe ${name} && echo ${name} >>/etc/modules-load.d/snowflock.conf`,
    };
  });
}

/** The kernel takes `-` and `_` for the same. */
function canonical(name: string): string {
  return name.replaceAll("-", "_");
}

/** Names of the modules in `modules.builtin` (paths) or `modules.dep` (`path: paths`). */
function modulesOf(text: string): Set<string> {
  const names = new Set<string>();
  for (const line of text.split("\n")) {
    const path = line.split(":")[0] ?? "";
    const file = path.slice(path.lastIndexOf("/") + 1);
    const name = /^(.+)\.ko(?:\.(?:gz|xz|zst))?$/.exec(file)?.[1];
    if (name !== undefined) names.add(canonical(name));
  }
  return names;
}
