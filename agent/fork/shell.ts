/** Shells: domains that are sized, paged out and known to xenstore, and have never run. Their cost grows with RAM; a fork's does not. */
import type { Domid, ForeignMemoryPort, Gfn, Port } from "../../hypercall/ports.ts";
import { DOM0, PAGE_BYTES } from "../../hypercall/ports.ts";
import type { Xen } from "../../hypercall/xen_api.ts";
import type { MemoryCalls } from "../memory/calls.ts";
import type { GuestShape } from "./descriptor.ts";
import { domainNodes } from "./domain_tree.ts";
import { HvmParam } from "./hvm_params.ts";
import { type Store, writeNodes } from "./store.ts";
import type { Clock } from "./timing.ts";
import { uuidBytes } from "./uuid.ts";
import { plugVifs, type VifPlumber } from "./vif.ts";

/** Beside its RAM a domain has special pages, and takes new ones for devices. */
const SPARE_PAGES = 1024n;
const SUPERPAGE_ORDER = 9;
const SUPERPAGE_PAGES = 1 << SUPERPAGE_ORDER;
/** Pages that are paged out between two turns of the event loop: about 10 ms. */
const PAGE_OUT_BATCH = 2048;
const GRANT_TABLE_RESOURCE = 1;
const GTF_PERMIT_ACCESS = 1;
/** Grant references that every guest has reserved (public/grant_table.h). */
const GNTTAB_RESERVED_CONSOLE = 0;
const GNTTAB_RESERVED_XENSTORE = 1;

export interface ShellPorts {
  readonly xen: Xen;
  readonly foreignMemory: ForeignMemoryPort;
  readonly store: Store;
  readonly memory: MemoryCalls;
  readonly plumber: VifPlumber;
  readonly clock: Clock;
}

export interface ShellRequest {
  readonly name: string;
  readonly uuid: string;
  readonly shape: GuestShape;
}

/** Pages of host memory that a shell takes while it has no RAM: domain structures, p2m, special pages. */
export function shellCostPages(shape: GuestShape): bigint {
  return mempoolBytes(shape) / BigInt(PAGE_BYTES) + 256n;
}

/** The paging pool that libxl gives (libxl_create.c): a page a MiB and 256 a vCPU. */
function mempoolBytes(shape: GuestShape): bigint {
  const mib = BigInt(Math.ceil(shape.memory.map.pages / 256));
  return BigInt(PAGE_BYTES) * (256n * BigInt(shape.vcpus) + mib);
}

/** Makes a shell. `created` learns the domid as soon as there is one; the caller ends the domain if this rejects. */
export async function makeShell(
  ports: ShellPorts,
  { name, uuid, shape }: ShellRequest,
  created: (domid: Domid) => void,
): Promise<Domid> {
  const { xen, store, memory } = ports;
  const domid = xen.createDomain({ vcpus: shape.vcpus, handle: uuidBytes(uuid) });
  created(domid);
  xen.setMaxVcpus(domid, shape.vcpus);
  xen.setMaxMemory(domid, (shape.maxPages + SPARE_PAGES) * 4n);
  xen.setPagingMempool(domid, mempoolBytes(shape));
  xen.setCpuPolicy(domid, shape.cpuPolicy);
  xen.setTscInfo(domid, shape.tsc);
  const frames = new Map(shape.memory.frames);
  const ring = frames.get(HvmParam.pagingRing);
  if (ring === undefined) throw new Error("the parent has no frame for a paging ring");
  const special = [...new Set<bigint>(frames.values())];
  xen.populate(domid, BigUint64Array.from(special), 0);
  for (const [index, gfn] of frames) xen.setHvmParam(domid, index, gfn);
  await memory.openDomain(domid, shape.memory.map.ranges, ring, true);
  await pageOut(ports, domid, shape);

  const storePort = xen.allocateUnbound(domid, DOM0);
  const consolePort = xen.allocateUnbound(domid, DOM0);
  xen.setHvmParam(domid, HvmParam.storeEvtchn, BigInt(storePort));
  xen.setHvmParam(domid, HvmParam.consoleEvtchn, BigInt(consolePort));
  const storeGfn = frames.get(HvmParam.storePfn);
  const consoleGfn = frames.get(HvmParam.consolePfn);
  if (storeGfn === undefined) throw new Error("the parent has no xenstore ring");
  // Before the introduction: xenstored maps its ring by the reserved grant.
  seedGrants(ports.foreignMemory, domid, storeGfn, consoleGfn);
  await introduce(store, { domid, name, uuid, shape, storeGfn, storePort, consoleGfn, consolePort });
  await plugVifs(store, ports.plumber, ports.clock, domid, uuid, shape.vifs);
  return domid;
}

async function introduce(
  store: Store,
  parts: {
    domid: Domid;
    name: string;
    uuid: string;
    shape: GuestShape;
    storeGfn: Gfn;
    storePort: Port;
    consoleGfn: Gfn | undefined;
    consolePort: Port;
  },
): Promise<void> {
  const { domid, name, uuid, shape, storeGfn, storePort, consoleGfn, consolePort } = parts;
  await writeNodes(
    store,
    domainNodes({
      domid,
      name,
      uuid,
      vcpus: shape.vcpus,
      memoryKib: shape.memoryKib,
      storePort,
      storeGfn,
      consolePort,
      consoleGfn: consoleGfn ?? 0n,
    }),
  );
  await store.introduce(domid, storeGfn, storePort);
}

/** Makes all RAM of a shell absent: populate, nominate, evict, a superpage at a time where the map allows one. */
async function pageOut({ xen, clock }: ShellPorts, domid: Domid, shape: GuestShape): Promise<void> {
  for (const { first, pages } of shape.memory.map.ranges) {
    let done = 0;
    while (done < pages) {
      const batch = Math.min(PAGE_OUT_BATCH, pages - done);
      const gfns = BigUint64Array.from({ length: batch }, (_, at) => first + BigInt(done + at));
      populateRun(xen, domid, gfns);
      const failed = xen.pageOut(domid, gfns).findIndex((result) => result !== 0);
      if (failed >= 0) throw new Error(`frame ${gfns[failed]?.toString(16)} of domain ${domid} could not be paged out`);
      done += batch;
      await clock.sleep(0);
    }
  }
}

function populateRun(xen: Xen, domid: Domid, gfns: BigUint64Array): void {
  let at = 0;
  while (at < gfns.length) {
    const gfn = gfns[at] ?? 0n;
    if (gfn % BigInt(SUPERPAGE_PAGES) === 0n && gfns.length - at >= SUPERPAGE_PAGES) {
      xen.populate(domid, BigUint64Array.of(gfn), SUPERPAGE_ORDER);
      at += SUPERPAGE_PAGES;
    } else {
      const toBoundary = SUPERPAGE_PAGES - Number(gfn % BigInt(SUPERPAGE_PAGES));
      const end = Math.min(gfns.length, at + toBoundary);
      xen.populate(domid, gfns.slice(at, end), 0);
      at = end;
    }
  }
}

/** The two grants through which dom0's daemons reach a guest's rings (xg_dom_boot.c). */
function seedGrants(foreignMemory: ForeignMemoryPort, domid: Domid, storeGfn: Gfn, consoleGfn: Gfn | undefined): void {
  using table = foreignMemory.mapResource(domid, GRANT_TABLE_RESOURCE, 0, 0, 1);
  const view = new DataView(table.bytes.buffer, table.bytes.byteOffset, table.bytes.byteLength);
  const seed = (ref: number, gfn: Gfn) => {
    view.setUint16(ref * 8 + 2, DOM0, true);
    view.setUint32(ref * 8 + 4, Number(gfn), true);
    view.setUint16(ref * 8, GTF_PERMIT_ACCESS, true);
  };
  if (consoleGfn !== undefined) seed(GNTTAB_RESERVED_CONSOLE, consoleGfn);
  seed(GNTTAB_RESERVED_XENSTORE, storeGfn);
}
