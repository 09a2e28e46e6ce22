/**
 * Makes sure that the Debian packages which tests call are installed: `setup.ts` for the unit tests and benchmarks,
 * `setup.ts lab` for the lab's too. As root it installs what is missing; otherwise it prints the one command that does.
 * Status 0 if all are there.
 */

/** What the unit tests and benchmarks call. */
export const TEST_PACKAGES = [
  "busybox-static",
  "dnsmasq-base",
  "e2fsprogs",
  "gcc",
  "iproute2",
  "libc6-dev",
  "libxen-dev",
  "munge",
  "nftables",
  "openssl",
  "procps",
  "qemu-utils",
  "slurm-client",
  "slurm-wlm-basic-plugins",
  "slurmctld",
  "slurmd",
  "tcpdump",
  "udpcast",
] as const;

/** What building Xen with paging, dom0's image and the guests needs, and what boots them. */
export const LAB_PACKAGES = [
  "bison",
  "build-essential",
  "cpio",
  "dpkg-dev",
  "flex",
  "kmod",
  "mmdebstrap",
  "openssh-client",
  "python3",
  "qemu-system-x86",
  "socat",
  "xz-utils",
  "zstd",
] as const;

async function output(program: string, args: readonly string[]): Promise<string> {
  const { stdout } = await new Deno.Command(program, { args: [...args], stdin: "null", stderr: "null" }).output();
  return new TextDecoder().decode(stdout);
}

/** Those of `packages` that dpkg does not report as installed. */
export async function missingPackages(packages: readonly string[]): Promise<string[]> {
  const listed = await output("dpkg-query", ["-W", "-f=${db:Status-Status} ${Package}\\n", ...packages]);
  const installed = new Set(
    listed.split("\n").filter((line) => line.startsWith("installed ")).map((line) => line.slice(10)),
  );
  return packages.filter((name) => !installed.has(name));
}

async function apt(args: readonly string[]): Promise<boolean> {
  const status = await new Deno.Command("apt-get", {
    args: ["-q", ...args],
    env: { DEBIAN_FRONTEND: "noninteractive" },
    stdin: "null",
    stdout: "inherit",
    stderr: "inherit",
  }).spawn().status;
  return status.success;
}

async function main(args: readonly string[]): Promise<number> {
  if (args.length > 1 || (args.length === 1 && args[0] !== "lab")) {
    console.error("usage: setup.ts [lab]");
    return 2;
  }
  const packages = args[0] === "lab" ? [...TEST_PACKAGES, ...LAB_PACKAGES] : TEST_PACKAGES;
  const missing = await missingPackages(packages);
  if (missing.length === 0) return 0;
  const install = ["install", "-y", "--no-install-recommends", ...missing];
  if (Deno.uid() !== 0) {
    console.error(`Missing packages. Run: sudo apt-get update && sudo apt-get ${install.join(" ")}`);
    return 1;
  }
  console.log(`Installing ${missing.join(" ")}`);
  if (await apt(["update"]) && await apt(install)) return 0;
  console.error("Cannot install the packages: apt-get failed, see above");
  return 1;
}

if (import.meta.main) Deno.exit(await main(Deno.args));
