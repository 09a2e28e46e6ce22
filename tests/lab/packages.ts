/** Debian packages that the lab needs on the machine it runs on. */
import { runCommand } from "./command.ts";
import { progress } from "./progress.ts";

const PACKAGES = [
  "qemu-system-x86", // the hosts
  "qemu-utils", // their disks' overlays
  "openssh-client",
  "mmdebstrap", // dom0's disk
  "e2fsprogs",
  "debian-archive-keyring",
  "xz-utils",
  "busybox-static", // guests
  "build-essential", // Xen, and the guests' programs
  "dpkg-dev",
  "flex",
  "bison",
  "python3",
  "util-linux", // setpriv
];

/** Installs what is missing if this is root; otherwise throws an error that names the command to run. */
export async function installPackages(): Promise<void> {
  const missing = await missingPackages();
  if (missing.length === 0) return;
  const install = `apt-get update && apt-get install -y --no-install-recommends ${missing.join(" ")}`;
  if (Deno.uid() !== 0) throw new Error(`The lab needs Debian packages. Run as root:\n  ${install}`);
  progress(`installing ${missing.join(" ")}`);
  await runCommand(["sh", "-c", install.replaceAll("apt-get", "DEBIAN_FRONTEND=noninteractive apt-get -q")], {
    timeoutMs: 1_800_000,
    label: install,
  });
}

async function missingPackages(): Promise<string[]> {
  const { stdout } = await runCommand(["dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\n", ...PACKAGES], {
    check: false,
  });
  const installed = new Set(
    stdout.split("\n").filter((line) => line.endsWith(" installed")).map((line) => line.split(" ")[0]),
  );
  return PACKAGES.filter((name) => !installed.has(name));
}
