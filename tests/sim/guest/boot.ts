/** Makes a domain as `xl create` does, with a simulated Linux in it: frames, parameters, ports, grants, nodes in xenstore. */
import { GNTTAB_RESERVED, HVM_PARAM } from "../../../hypercall/abi/mod.ts";
import { struct } from "../../../hypercall/struct.ts";
import type { Domain } from "../domain.ts";
import { initialiseVcpu } from "../hvm_context.ts";
import type { SimXen } from "../sim_xen.ts";
import type { SimXenstore } from "../xenstore/server.ts";
import { GuestStore } from "./guest_store.ts";

export interface RamRange {
  readonly first: number;
  readonly pages: number;
}

export interface BootOptions {
  readonly name?: string;
  readonly vcpus?: number;
  /** Ascending. The first has 128 pages at least: the kernel lies there. 8 MiB from 0 if left out. */
  readonly ram?: readonly RamRange[];
  readonly vifs?: number;
}

/** The simulated kernel's own data, in its memory: a clone finds it there. Not an interface of Xen's. */
export const KernelPage = struct("sim_guest_kernel", {
  magic: "u64",
  vcpus: "u32",
  suspends: "u32",
  shared_info_gfn: "u64",
  grant_gfn: "u64",
  vcpu_info_gfn: "u64",
  stack_gfn: "u64",
});
export const KERNEL_MAGIC = 0x73696d2d6b65726en;

/** Where things lie, from the start of RAM. */
export const LAYOUT = { kernel: 1, sharedInfo: 2, grantTable: 3, vcpuInfo: 4, stack: 40, user: 64 } as const;

const SPECIAL_FIRST = 0xfeff8;
const SPECIAL_PAGES = 8;
/** By its place among the special pages (tools/include/xenguest.h). */
const SPECIAL = {
  paging: 0,
  monitor: 1,
  sharing: 2,
  bufioreq: 3,
  xenstore: 4,
  ioreq: 5,
  identPt: 6,
  console: 7,
} as const;
const CALLBACK_VECTOR = (2n << 56n) | 0xf3n;
const SLACK_PAGES = 256;

export function bootDomain(
  xen: SimXen,
  store: SimXenstore,
  options: BootOptions,
): { domain: Domain; kernelGfn: number } {
  const ram = options.ram ?? [{ first: 0, pages: 2048 }];
  const vcpus = options.vcpus ?? 2;
  const pages = ram.reduce((sum, range) => sum + range.pages, 0);
  const start = ram[0]?.first ?? 0;
  if ((ram[0]?.pages ?? 0) < 128) throw new RangeError("the first range of RAM holds the kernel: 128 pages at least");
  const domain = xen.createDomain({
    domid: 0,
    handle: new Uint8Array(16).fill(xen.domains().length + 1),
    vcpus,
    maxPort: 1023,
    maxGrantFrames: -1,
    emulationFlags: 1,
  });
  if (typeof domain === "number") throw new Error(`the guest's domain was not made: ${domain}`);
  const done = (result: boolean | number, what: string) => {
    if (result !== true && result !== 0) throw new Error(`the guest was not booted: ${what} (${result})`);
  };
  done(domain.makeVcpus(vcpus), "vCPUs");
  domain.memory.maxPages = pages + SPECIAL_PAGES + SLACK_PAGES;
  done(domain.memory.setPool(256 * vcpus + Math.ceil(pages / 256) + 64), "paging pool");
  const special = { first: SPECIAL_FIRST, pages: SPECIAL_PAGES };
  for (const { first, pages } of [...ram, special]) {
    const gfns = Array.from({ length: pages }, (_, index) => BigInt(first + index));
    done(domain.memory.populate(gfns, 0) === pages, "memory");
  }
  setParams(domain);
  const storePort = xen.eventChannels.allocateUnbound(domain.domid, 0);
  const consolePort = xen.eventChannels.allocateUnbound(domain.domid, 0);
  domain.params.set(HVM_PARAM.STORE_EVTCHN, BigInt(storePort));
  domain.params.set(HVM_PARAM.CONSOLE_EVTCHN, BigInt(consolePort));
  seedGrants(domain);
  for (const vcpu of domain.vcpus) initialiseVcpu(vcpu, xen.minor);
  startKernel(domain, start);
  writeNodes(store, domain, { name: options.name ?? `guest${domain.domid}`, pages, storePort, consolePort });
  for (let vif = 0; vif < (options.vifs ?? 0); vif++) writeVif(store, domain.domid, vif);
  store.introduce(domain.domid, SPECIAL_FIRST + SPECIAL.xenstore, storePort);
  done(domain.unpause(), "unpause");
  return { domain, kernelGfn: start + LAYOUT.kernel };
}

function setParams(domain: Domain): void {
  const at = (place: number) => BigInt(SPECIAL_FIRST + place);
  domain.params.set(HVM_PARAM.STORE_PFN, at(SPECIAL.xenstore));
  domain.params.set(HVM_PARAM.CONSOLE_PFN, at(SPECIAL.console));
  domain.params.set(HVM_PARAM.IDENT_PT, at(SPECIAL.identPt));
  domain.params.set(HVM_PARAM.PAGING_RING_PFN, at(SPECIAL.paging));
  domain.params.set(HVM_PARAM.MONITOR_RING_PFN, at(SPECIAL.monitor));
  domain.params.set(HVM_PARAM.SHARING_RING_PFN, at(SPECIAL.sharing));
  domain.params.set(HVM_PARAM.TIMER_MODE, 1n);
  domain.params.set(HVM_PARAM.CALLBACK_IRQ, CALLBACK_VECTOR);
  const identity = new Uint32Array(1024).map((_, index) => ((index << 22) | 0xe7) >>> 0);
  const frame = domain.memory.p2m.get(SPECIAL_FIRST + SPECIAL.identPt).frame;
  frame?.write(0, new Uint8Array(identity.buffer));
}

/** References 0 and 1, as the toolstack seeds them (public/grant_table.h). */
function seedGrants(domain: Domain): void {
  domain.grants.grant(GNTTAB_RESERVED.console, 0, SPECIAL_FIRST + SPECIAL.console, false);
  domain.grants.grant(GNTTAB_RESERVED.xenstore, 0, SPECIAL_FIRST + SPECIAL.xenstore, false);
}

/** What the kernel does at its start: shared_info and the grant table in place of RAM, vcpu_info in its per-CPU area. */
function startKernel(domain: Domain, start: number): void {
  const [boot] = domain.vcpus;
  if (boot === undefined) throw new Error("the guest has no vCPU");
  domain.mapSharedInfo(start + LAYOUT.sharedInfo);
  domain.mapGrantFrame(0, start + LAYOUT.grantTable);
  for (const vcpu of domain.vcpus) {
    vcpu.down = vcpu !== boot;
    const result = domain.registerVcpuInfo(boot, vcpu, start + LAYOUT.vcpuInfo + vcpu.id);
    if (result !== 0) throw new Error(`the guest's vcpu_info was refused: ${result}`);
    vcpu.down = false;
    // A register that survives a suspend: the kernel finds its data by it.
    vcpu.cpu.rbx = BigInt(start + LAYOUT.kernel);
  }
  const kernel = KernelPage.encode({
    magic: KERNEL_MAGIC,
    vcpus: domain.vcpus.length,
    shared_info_gfn: BigInt(start + LAYOUT.sharedInfo),
    grant_gfn: BigInt(start + LAYOUT.grantTable),
    vcpu_info_gfn: BigInt(start + LAYOUT.vcpuInfo),
    stack_gfn: BigInt(start + LAYOUT.stack),
  });
  domain.memory.p2m.get(start + LAYOUT.kernel).frame?.write(0, kernel);
}

interface NodeParts {
  readonly name: string;
  readonly pages: number;
  readonly storePort: number;
  readonly consolePort: number;
}

function writeNodes(store: SimXenstore, domain: Domain, { name, pages, storePort, consolePort }: NodeParts): void {
  const toolstack = new GuestStore(store.connectToolstack());
  const { domid } = domain;
  const root = `/local/domain/${domid}`;
  const put = (path: string, value: string, ...permissions: string[]) => {
    toolstack.write(`${root}${path}`, value);
    toolstack.setPermissions(`${root}${path}`, ...permissions);
  };
  const readable = ["n0", `r${domid}`];
  const hostNodes = {
    "": "",
    "/name": name,
    "/domid": `${domid}`,
    "/vm": `/vm/sim-${domid}`,
    "/memory/target": `${pages * 4}`,
    "/memory/static-max": `${pages * 4}`,
    "/control": "",
    "/device": "",
    "/control/platform-feature-multiprocessor-suspend": "1",
    "/store/port": `${storePort}`,
    "/store/ring-ref": `${SPECIAL_FIRST + SPECIAL.xenstore}`,
    "/console/port": `${consolePort}`,
    "/console/ring-ref": `${SPECIAL_FIRST + SPECIAL.console}`,
    "/console/type": "xenconsoled",
  };
  for (const [path, value] of Object.entries(hostNodes)) put(path, value, ...readable);
  put("/control/shutdown", "", `n${domid}`);
  put("/control/feature-suspend", "1", `n${domid}`);
  put("/device/suspend/event-channel", "", `n${domid}`);
  put("/data", "", `n${domid}`);
  toolstack.close();
}

/** As netback and netfront leave them when they are connected. */
function writeVif(store: SimXenstore, domid: number, handle: number): void {
  const toolstack = new GuestStore(store.connectToolstack());
  const front = `/local/domain/${domid}/device/vif/${handle}`;
  const back = `/local/domain/0/backend/vif/${domid}/${handle}`;
  const mac = `00:16:3e:00:0${handle % 10}:${domid.toString(16).padStart(2, "0").slice(-2)}`;
  toolstack.write(front, "");
  toolstack.setPermissions(front, `n${domid}`, "r0");
  toolstack.write(back, "");
  toolstack.setPermissions(back, "n0", `r${domid}`);
  const shared = { handle: `${handle}`, mac, state: "4" };
  const frontNodes = { backend: back, "backend-id": "0", ...shared };
  const backNodes = { frontend: front, "frontend-id": `${domid}`, online: "1", bridge: "br0", type: "vif", ...shared };
  for (const [name, value] of Object.entries(frontNodes)) toolstack.write(`${front}/${name}`, value);
  for (const [name, value] of Object.entries(backNodes)) toolstack.write(`${back}/${name}`, value);
  toolstack.close();
}
