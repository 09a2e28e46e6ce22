import assert from "node:assert/strict";
import type { PhysicalInfo, Xen } from "../../hypercall/xen_api.ts";
import { type DoctorPorts, examine, type Finding, formatFindings, healthy } from "./mod.ts";

const HEALTHY_FILES: Readonly<Record<string, string>> = {
  "/proc/xen/capabilities": "control_d\n",
  "/sys/hypervisor/guest_type": "PV\n",
  "/proc/sys/kernel/osrelease": "6.1.0-1-amd64\n",
  "/proc/modules": "xen_gntdev 1 0 - Live 0x0\nxen_netback 1 0 - Live 0x0\nxen_blkback 1 0 - Live 0x0\n",
  "/lib/modules/6.1.0-1-amd64/modules.builtin": "kernel/drivers/xen/xen-evtchn.ko\n",
  "/lib/modules/6.1.0-1-amd64/modules.dep":
    "kernel/net/bridge/bridge.ko: kernel/net/llc/llc.ko\nkernel/drivers/net/vxlan/vxlan.ko.xz:\n",
};

interface Machine {
  files?: Record<string, string | undefined>;
  missing?: string[];
  uid?: number;
  prep?: number;
  version?: Xen["version"];
  info?: Partial<PhysicalInfo>;
  xen?: string;
  xenstored?: string;
}

function portsOf(machine: Machine): DoctorPorts & { closed: () => boolean } {
  const files: Record<string, string | undefined> = { ...HEALTHY_FILES, ...machine.files };
  let closed = false;
  const info = { hvm: true, hap: true, cpus: 1, cpuKhz: 1, totalPages: 786_432n, freePages: 300_000n, ...machine.info };
  const xen: Pick<Xen, "version" | "physicalInfo" | "prep"> & Disposable = {
    version: machine.version ?? { major: 4, minor: 17, extra: ".5" },
    physicalInfo: () => info,
    prep: () => machine.prep ?? -3,
    [Symbol.dispose]: () => closed = true,
  };
  return {
    uid: () => machine.uid ?? 0,
    readText: (path) => Promise.resolve(files[path]),
    exists: (path) => Promise.resolve(!(machine.missing ?? []).includes(path)),
    openXen: () => {
      if (machine.xen !== undefined) throw new Error(machine.xen);
      return xen as Xen & Disposable;
    },
    askXenstored: () =>
      machine.xenstored === undefined ? Promise.resolve() : Promise.reject(new Error(machine.xenstored)),
    closed: () => closed,
  };
}

async function find(machine: Machine, check: string): Promise<Finding> {
  const findings = await examine(portsOf(machine));
  const finding = findings.find((finding) => finding.check === check);
  assert.ok(finding !== undefined, check);
  if (finding.status === "fail") {
    assert.equal(healthy(findings), false);
    assert.ok(finding.remedy !== undefined, `${check} has no remedy`);
  }
  return finding;
}

Deno.test("a healthy host passes all checks", async () => {
  const ports = portsOf({});
  const findings = await examine(ports);
  assert.deepEqual(findings.filter((finding) => finding.status !== "ok"), []);
  assert.equal(findings.length, 15);
  assert.ok(healthy(findings));
  assert.ok(ports.closed());
});

Deno.test("each thing that can be missing fails its own check, with a remedy", async () => {
  const cases: [Machine, string, Finding["status"], RegExp][] = [
    [{ uid: 1000 }, "root", "fail", /user 1000/],
    [{ files: { "/proc/xen/capabilities": undefined } }, "dom0", "fail", /does not run under Xen/],
    [
      { files: { "/proc/xen/capabilities": undefined, "/sys/hypervisor/type": "xen\n" } },
      "dom0",
      "fail",
      /\/proc\/xen is not mounted/,
    ],
    [{ files: { "/proc/xen/capabilities": "\n" } }, "dom0", "fail", /a guest/],
    [{ files: { "/sys/hypervisor/guest_type": "PVH\n" } }, "PV dom0", "fail", /PVH/],
    [{ files: { "/sys/hypervisor/guest_type": undefined } }, "PV dom0", "skipped", /guest_type/],
    [{ version: { major: 4, minor: 11, extra: "" } }, "Xen version", "fail", /4\.11/],
    [{ prep: -38 }, "memory paging", "fail", /CONFIG_MEM_PAGING/],
    [{ prep: -22 }, "memory paging", "warning", /-22/],
    [{ info: { hap: false } }, "HAP", "fail", /no hardware-assisted paging/],
    [{ info: { hvm: false, hap: false } }, "HAP", "fail", /no hardware virtualisation/],
    [{ info: { freePages: 10_000n } }, "free memory", "warning", /^39 MiB of 3072 MiB/],
    [{ info: { freePages: 1000n } }, "free memory", "fail", /^3 MiB/],
    [{ missing: ["/dev/xen/gntdev"] }, "devices", "fail", /missing: \/dev\/xen\/gntdev$/],
    [{ files: { "/proc/modules": "" } }, "module xen-netback", "fail", /not in kernel 6\.1\.0-1-amd64/],
    [
      {
        files: {
          "/proc/modules": "",
          "/lib/modules/6.1.0-1-amd64/modules.dep": "kernel/drivers/block/xen-blkback/xen-blkback.ko.zst:\n",
        },
      },
      "module xen-blkback",
      "fail",
      /not loaded/,
    ],
    [{ files: { "/lib/modules/6.1.0-1-amd64/modules.dep": "" } }, "module vxlan", "warning", /several hosts/],
    [{ xenstored: "no socket" }, "xenstored", "fail", /no socket/],
  ];
  for (const [machine, check, status, detail] of cases) {
    const finding = await find(machine, check);
    assert.equal(finding.status, status, check);
    assert.match(finding.detail, detail);
  }
});

Deno.test("without Xen, what would need it is skipped", async () => {
  const findings = await examine(portsOf({ xen: "Cannot open /dev/xen/privcmd" }));
  assert.equal(findings.find((finding) => finding.check === "Xen")?.status, "fail");
  for (const check of ["Xen version", "memory paging", "HAP", "free memory"]) {
    assert.equal(findings.find((finding) => finding.check === check)?.status, "skipped");
  }
});

Deno.test("a call that Xen refuses fails its check only", async () => {
  const ports = portsOf({});
  const findings = await examine({
    ...ports,
    openXen: () =>
      Object.assign(ports.openXen(), {
        physicalInfo: () => {
          throw new Error("Cannot read the host's state: EACCES");
        },
      }),
  });
  assert.deepEqual(findings.filter((finding) => finding.status === "fail").map((finding) => finding.check), [
    "Xen version",
    "HAP",
    "free memory",
  ]);
  assert.equal(findings.find((finding) => finding.check === "memory paging")?.status, "ok");
});

Deno.test("findings as text", () => {
  assert.equal(
    formatFindings([
      { check: "root", status: "ok", detail: "user 0" },
      { check: "xenstored", status: "fail", detail: "no", remedy: "start it" },
    ]),
    "ok    root       user 0\nFAIL  xenstored  no\n                 -> start it\n",
  );
});
