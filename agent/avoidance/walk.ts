/**
 * Tells which pages of a suspended Linux guest its kernel holds free, from its buddy allocator's lists (mm/page_alloc.c): every
 * node, zone, order and migrate type. Pages in the per-CPU caches are not in these lists and count as used.
 */
import { FreeLists } from "./free_list.ts";
import type { GuestMemory } from "./guest_memory.ts";
import { hex, KernelMemory, type PagingRegisters, type WalkBudget } from "./kernel_memory.ts";
import { type KernelLayout, LIST_HEAD_BYTES, symbolAddress, type Symbols } from "./layout.ts";
import { PageSet, RamIndex, type RamMap } from "./page_set.ts";
import { refusable, Refusal, type Refused } from "./refusal.ts";

export interface WalkQuery extends PagingRegisters {
  /** As the guest reported them: hints, all checked. */
  readonly symbols: Symbols;
  readonly layout: KernelLayout;
  readonly map: RamMap;
  /** Without one: {@link defaultFrameBudget}, and no limit of time. */
  readonly budget?: WalkBudget;
}

export interface FreeZone {
  readonly node: number;
  /** `DMA32`, as the kernel calls it. */
  readonly name: string;
  readonly blocks: number;
  readonly pages: number;
}

export interface FreeAtFork {
  readonly ok: true;
  /** Free pages, by index in the memory map. */
  readonly free: PageSet;
  /** Zones that have memory. */
  readonly zones: readonly FreeZone[];
  /** Frames of the guest that were read. */
  readonly framesRead: number;
}

/** Where the kernel has its array of page structs if it is not moved (arch/x86/include/asm/pgtable_64_types.h). */
const VMEMMAP_4_LEVELS = 0xffffea0000000000n;
const VMEMMAP_5_LEVELS = 0xffd4000000000000n;
const LA57 = 1n << 12n;
const MAX_NAME_BYTES = 16;
/** What page poisoning fills free pages with (include/linux/poison.h). */
const POISON_WORD = 0xaaaaaaaa;
/** Free pages that are looked into for the pattern. */
const POISON_SAMPLES = 4;

/** Frames that a walk of `pages` pages may need: all page structs (up to 64 bytes a page), their tables, the nodes. */
export function defaultFrameBudget(pages: number): number {
  return Math.ceil(pages / 64) + Math.ceil(pages / 4096) + 4096;
}

/**
 * The free pages, or why they cannot be told. The guest must be suspended: nothing of it may change meanwhile. Reads through
 * `memory` only, as much as `budget` allows, and ends whatever the guest's memory holds.
 */
export function walkFreePages(memory: GuestMemory, query: WalkQuery): FreeAtFork | Refused {
  return refusable(() => {
    const { symbols, layout, map } = query;
    const budget = query.budget ?? { frames: defaultFrameBudget(map.pages) };
    const kernel = new KernelMemory(memory, query, budget);
    kernel.useKernelTables(symbolAddress(symbols, symbols.has("node_data") ? "node_data" : "contig_page_data"));
    const unpoisoned = knownUnpoisoned(kernel, symbols);
    const ram = new RamIndex(map);
    const free = new PageSet(map.pages);
    const lists = new FreeLists(kernel, vmemmapBase(kernel, query), layout.page, ram, free);
    const zones: FreeZone[] = [];
    for (const { node, address } of nodesOf(kernel, symbols, layout)) {
      for (let at = 0; at < layout.zones; at++) {
        kernel.checkTime();
        const zone = address + BigInt(layout.node.zones + at * layout.zone.bytes);
        const before = free.count;
        const blocks = walkZone(kernel, lists, layout, zone, map.pages);
        if (blocks === undefined) continue;
        zones.push({ node, name: zoneName(kernel, zone, layout), blocks, pages: free.count - before });
      }
    }
    if (zones.length === 0) throw new Refusal("zone", "no zone has memory");
    if (!unpoisoned) checkPoisonedPages(kernel, map, free);
    return { ok: true as const, free, zones, framesRead: kernel.framesRead };
  });
}

function vmemmapBase(kernel: KernelMemory, { symbols, cr4 }: WalkQuery): bigint {
  const variable = symbols.get("vmemmap_base");
  if (variable !== undefined) return kernel.u64(variable);
  return (cr4 & LA57) === 0n ? VMEMMAP_4_LEVELS : VMEMMAP_5_LEVELS;
}

/** The kernel's nodes: an array of pointers, or one object in a kernel without NUMA. */
function nodesOf(kernel: KernelMemory, symbols: Symbols, layout: KernelLayout): { node: number; address: bigint }[] {
  const array = symbols.get("node_data");
  const nodes: { node: number; address: bigint }[] = [];
  if (array === undefined) nodes.push({ node: 0, address: symbolAddress(symbols, "contig_page_data") });
  else {
    for (let node = 0; node < layout.nodes; node++) {
      const address = kernel.u64(array + BigInt(8 * node));
      if (address !== 0n) nodes.push({ node, address });
    }
  }
  for (const { node, address } of nodes) {
    const id = kernel.u32(address + BigInt(layout.node.id));
    if (id !== node) throw new Refusal("zone", `node ${node} at ${hex(address)} calls itself ${id}`);
  }
  return nodes;
}

/** Blocks in the zone's lists, or undefined for a zone without memory. */
function walkZone(
  kernel: KernelMemory,
  lists: FreeLists,
  layout: KernelLayout,
  zone: bigint,
  ramPages: number,
): number | undefined {
  const firstPfn = plainCount(kernel.u64(zone + BigInt(layout.zone.startPfn)), 2 ** 40, "first frame of a zone");
  const spanned = plainCount(kernel.u64(zone + BigInt(layout.zone.spannedPages)), 2 ** 40, "span of a zone");
  let blocks = 0;
  for (let order = 0; order < layout.orders; order++) {
    const area = zone + BigInt(layout.zone.freeAreas + order * layout.freeArea.bytes);
    const counted = plainCount(kernel.u64(area + BigInt(layout.freeArea.count)), ramPages, "nr_free");
    let found = 0;
    for (let type = 0; type < layout.migrateTypes; type++) {
      const head = area + BigInt(layout.freeArea.lists + type * LIST_HEAD_BYTES);
      found += lists.walk(head, order, counted - found, firstPfn, firstPfn + spanned);
    }
    if (found !== counted) {
      throw new Refusal("count", `order ${order} of zone ${hex(zone)} has ${found} blocks, nr_free says ${counted}`);
    }
    blocks += found;
  }
  return spanned === 0 ? undefined : blocks;
}

function plainCount(value: bigint, most: number, what: string): number {
  if (value > BigInt(most)) throw new Refusal("count", `${what}: ${value}`);
  return Number(value);
}

/** A label for people: what cannot be read of it is left out. */
function zoneName(kernel: KernelMemory, zone: bigint, layout: KernelLayout): string {
  const pointer = kernel.u64(zone + BigInt(layout.zone.name));
  const bytes = kernel.bytes(pointer, MAX_NAME_BYTES);
  const end = bytes.indexOf(0);
  return String.fromCharCode(...bytes.subarray(0, end < 0 ? MAX_NAME_BYTES : end)).replaceAll(/[^\w-]/g, "?");
}

/**
 * `_page_poisoning_enabled` is a static key: a count that is not zero where the kernel was started with `page_poison=1`. False
 * where the guest did not report it, or its kernel has no such thing.
 */
function knownUnpoisoned(kernel: KernelMemory, symbols: Symbols): boolean {
  const key = symbols.get("_page_poisoning_enabled");
  if (key !== undefined && kernel.u32(key) !== 0) throw new Refusal("poisoning", "the kernel's poisoning key is on");
  return key !== undefined;
}

/** Without the key: free pages are full of the pattern then, so a few of them, spread out, tell. Absent ones say nothing. */
function checkPoisonedPages(kernel: KernelMemory, map: RamMap, free: PageSet): void {
  const step = Math.max(1, Math.ceil(free.length / POISON_SAMPLES));
  for (let start = 0; start < free.length; start += step) {
    let index = start;
    while (index < free.length && index < start + step && !free.has(index)) index++;
    if (index >= start + step || !free.has(index)) continue;
    const words = kernel.tryFrame(gfnAt(map, index));
    if (words?.every((word) => word === POISON_WORD)) {
      throw new Refusal("poisoning", "free pages hold the poison pattern");
    }
  }
}

function gfnAt(map: RamMap, index: number): bigint {
  for (const { first, pages } of map.ranges) {
    if (index < pages) return first + BigInt(index);
    index -= pages;
  }
  throw new RangeError("an index beyond the memory map");
}
