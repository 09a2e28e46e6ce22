/** Where a kernel keeps its free lists: offsets of `struct pglist_data`, `zone`, `free_area` and `page` (include/linux/mmzone.h, mm_types.h). */
import { createHash } from "node:crypto";
import { Btf, MAX_BTF_BYTES } from "./btf.ts";
import type { GuestMemory } from "./guest_memory.ts";
import { hex, KernelMemory, type PagingRegisters, type WalkBudget } from "./kernel_memory.ts";
import { refusable, Refusal, type Refused } from "./refusal.ts";

/** Offsets and sizes in bytes, counts of elements. */
export interface KernelLayout {
  readonly nodes: number;
  readonly zones: number;
  readonly orders: number;
  readonly migrateTypes: number;
  readonly node: { readonly id: number; readonly zones: number };
  readonly zone: {
    readonly bytes: number;
    readonly name: number;
    readonly startPfn: number;
    readonly spannedPages: number;
    readonly freeAreas: number;
  };
  readonly freeArea: { readonly bytes: number; readonly lists: number; readonly count: number };
  /** `list` is the link in a free list, `order` the word that holds a free block's order. */
  readonly page: { readonly bytes: number; readonly list: number; readonly order: number };
}

export const LIST_HEAD_BYTES = 16;
const MAX_NODES = 1 << 12;
const MAX_ZONES = 8;
/** A largest block of 2^20 pages would be 4 GiB; Linux has 11 orders on x86. */
const MAX_ORDERS = 20;
const MAX_MIGRATE_TYPES = 16;
const MAX_STRUCT_BYTES = 1 << 16;
const MAX_NODE_BYTES = 1 << 22;

function check(holds: boolean, detail: string): void {
  if (!holds) throw new Refusal("layout", detail);
}

function within(value: number, low: number, high: number, what: string): number {
  check(Number.isInteger(value) && value >= low && value <= high, `${what} of ${value}`);
  return value;
}

/** Offset of a member of `bytes` bytes, aligned to its size, in a struct of `structBytes`. */
function fieldAt(offset: number, bytes: number, structBytes: number, what: string): number {
  check(offset % Math.min(bytes, 8) === 0 && offset + bytes <= structBytes, `${what} at ${offset}`);
  return offset;
}

/** Finds the layout in the types. Throws a {@link Refusal}. */
export function layoutOf(btf: Btf): KernelLayout {
  const nodeType = btf.struct("pglist_data");
  const nodeBytes = within(btf.size(nodeType), 8, MAX_NODE_BYTES, "a node");
  const zonesMember = btf.member(nodeType, "node_zones");
  const zoneArray = btf.array(zonesMember.type);
  const zones = within(zoneArray.count, 1, MAX_ZONES, "zones");
  const zoneBytes = within(btf.size(zoneArray.element), 8, MAX_STRUCT_BYTES, "a zone");
  const zone = (name: string) => btf.member(zoneArray.element, name).byteOffset;

  const areaArray = btf.array(btf.member(zoneArray.element, "free_area").type);
  const orders = within(areaArray.count, 1, MAX_ORDERS, "orders");
  const areaBytes = within(btf.size(areaArray.element), 8, MAX_STRUCT_BYTES, "a free area");
  const listsMember = btf.member(areaArray.element, "free_list");
  const listArray = btf.array(listsMember.type);
  const migrateTypes = within(listArray.count, 1, MAX_MIGRATE_TYPES, "migrate types");
  check(btf.size(listArray.element) === LIST_HEAD_BYTES, "a list head of another size");

  const pageType = btf.struct("page");
  const pageBytes = within(btf.size(pageType), 16, 512, "a page struct");
  // On x86-64 it has 64 bytes in all but debugging kernels; the walk relies on none lying across two pages.
  check(4096 % pageBytes === 0, `a page struct of ${pageBytes} bytes`);
  check(zoneBytes % 8 === 0 && areaBytes % 8 === 0, "a struct that is not aligned");

  // The references of a zone list are one for each zone of each node, and one that ends them.
  const zonelists = btf.array(btf.member(nodeType, "node_zonelists").type);
  const references = btf.array(btf.member(zonelists.element, "_zonerefs").type).count - 1;
  check(references % zones === 0, `${references} zone references`);

  return {
    nodes: within(references / zones, 1, MAX_NODES, "nodes"),
    zones,
    orders,
    migrateTypes,
    node: {
      id: fieldAt(btf.member(nodeType, "node_id").byteOffset, 4, nodeBytes, "node_id"),
      zones: fieldAt(zonesMember.byteOffset, zones * zoneBytes, nodeBytes, "node_zones"),
    },
    zone: {
      bytes: zoneBytes,
      name: fieldAt(zone("name"), 8, zoneBytes, "name"),
      startPfn: fieldAt(zone("zone_start_pfn"), 8, zoneBytes, "zone_start_pfn"),
      spannedPages: fieldAt(zone("spanned_pages"), 8, zoneBytes, "spanned_pages"),
      freeAreas: fieldAt(zone("free_area"), orders * areaBytes, zoneBytes, "free_area"),
    },
    freeArea: {
      bytes: areaBytes,
      lists: fieldAt(listsMember.byteOffset, migrateTypes * LIST_HEAD_BYTES, areaBytes, "free_list"),
      count: fieldAt(btf.member(areaArray.element, "nr_free").byteOffset, 8, areaBytes, "nr_free"),
    },
    page: {
      bytes: pageBytes,
      // The buddy allocator links by `buddy_list`, another name for `lru` (Linux 6.1), or by `lru` itself before.
      list: fieldAt(btf.member(pageType, "lru").byteOffset, LIST_HEAD_BYTES, pageBytes, "lru"),
      order: fieldAt(btf.member(pageType, "private").byteOffset, 8, pageBytes, "private"),
    },
  };
}

/** Layouts kept. Hosts run few kernels. */
const MAX_LAYOUTS = 32;

/**
 * Layouts by the digest of the whole BTF. A key that one guest could make another's BTF share (its length, a build id) would let it lay
 * wrong offsets for that one.
 */
export class KernelLayouts {
  readonly #layouts = new Map<string, KernelLayout>();

  get size(): number {
    return this.#layouts.size;
  }

  /** The layout of the kernel with this BTF, parsed if it is new. Throws a {@link Refusal}; refused BTF is not remembered. */
  of(bytes: Uint8Array<ArrayBuffer>): KernelLayout {
    const key = createHash("sha256").update(bytes).digest("hex");
    const known = this.#layouts.get(key);
    const layout = known ?? layoutOf(new Btf(bytes));
    // Last used, last dropped.
    this.#layouts.delete(key);
    this.#layouts.set(key, layout);
    for (const oldest of this.#layouts.keys()) {
      if (this.#layouts.size <= MAX_LAYOUTS) break;
      this.#layouts.delete(oldest);
    }
    return layout;
  }
}

export type Symbols = ReadonlyMap<string, bigint>;

/** An address that the guest reported. Throws a {@link Refusal} where it did not. */
export function symbolAddress(symbols: Symbols, name: string): bigint {
  const address = symbols.get(name);
  if (address === undefined) throw new Refusal("symbols", `the guest did not report ${name}`);
  return address;
}

export interface LayoutQuery extends PagingRegisters {
  readonly symbols: Symbols;
  readonly budget: WalkBudget;
}

/**
 * Reads a guest kernel's BTF (some 1,100 frames) and finds its layout. For a running guest, before the fork: this is the slow part, and
 * neither the BTF nor the page tables that lead to it change while a kernel runs.
 */
export function readLayout(
  memory: GuestMemory,
  query: LayoutQuery,
  layouts: KernelLayouts,
): { readonly ok: true; readonly layout: KernelLayout } | Refused {
  return refusable(() => {
    const start = symbolAddress(query.symbols, "__start_BTF");
    const byteLength = symbolAddress(query.symbols, "__stop_BTF") - start;
    if (byteLength <= 0n || byteLength > BigInt(MAX_BTF_BYTES)) {
      throw new Refusal("btf", `a section of ${byteLength} bytes at ${hex(start)}`);
    }
    const kernel = new KernelMemory(memory, query, query.budget);
    kernel.useKernelTables(start);
    const layout = layouts.of(kernel.bytes(start, Number(byteLength)));
    kernel.checkTime();
    return { ok: true as const, layout };
  });
}
