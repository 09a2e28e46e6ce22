/**
 * Follows the lists of free blocks. Each link is the address of a `struct page` in the kernel's array of them (`vmemmap`), so a
 * block's frame number is its place in that array, and nothing of the block itself is read.
 *
 * This is the walk's inner loop, run while the guest stands still: addresses are taken as two 32-bit halves and become byte
 * offsets in the array (plain numbers, exact) by subtraction. No block can be visited twice, for its pages are
 * noted, so every list ends.
 */
import { hex, type KernelMemory, type Leaf } from "./kernel_memory.ts";
import type { KernelLayout } from "./layout.ts";
import type { PageSet, RamIndex } from "./page_set.ts";
import { Refusal } from "./refusal.ts";

const PAGE_BYTES = 4096;
const PAGES_A_REGION = 512;
/** Blocks between looks at the clock. */
const BLOCKS_A_CHECK = 512;

export class FreeLists {
  readonly #kernel: KernelMemory;
  readonly #base: bigint;
  readonly #baseLow: number;
  readonly #baseHigh: number;
  readonly #endBytes: number;
  readonly #layout: KernelLayout["page"];
  readonly #ram: RamIndex;
  readonly #free: PageSet;
  /** Pages of the array, by their place in it. */
  readonly #pages = new Map<number, Uint32Array>();
  /** Page-table entries of 2 MiB and more that map the array, by region of 512 pages. */
  readonly #leaves = new Map<number, Leaf>();
  #blocks = 0;

  /** Blocks found are added to `free`. `base`: what `vmemmap_base` holds. */
  constructor(kernel: KernelMemory, base: bigint, layout: KernelLayout["page"], ram: RamIndex, free: PageSet) {
    if (base % BigInt(PAGE_BYTES) !== 0n) throw new Refusal("foreign-pointer", `vmemmap at ${hex(base)}`);
    this.#kernel = kernel;
    this.#base = base;
    this.#baseLow = Number(base & 0xffffffffn);
    this.#baseHigh = Number(base >> 32n);
    this.#layout = layout;
    this.#ram = ram;
    this.#free = free;
    this.#endBytes = ram.end * layout.bytes;
  }

  /**
   * Follows the list at `head`, of blocks of 2^`order` pages with frame numbers from `firstPfn` to below `endPfn`, and returns how
   * many there are; more than `most` are refused. A head of zeros, as in a zone without memory, is an empty list.
   */
  walk(head: bigint, order: number, most: number, firstPfn: number, endPfn: number): number {
    const next = this.#kernel.u64(head);
    const last = this.#kernel.u64(head + 8n);
    if (next === 0n && last === 0n) return 0;
    const headLow = Number(head & 0xffffffffn), headHigh = Number(head >> 32n);
    const { bytes, list, order: orderAt } = this.#layout;
    const pages = 2 ** order;
    let low = Number(next & 0xffffffffn), high = Number(next >> 32n);
    let beforeLow = headLow, beforeHigh = headHigh;
    let count = 0;
    while (low !== headLow || high !== headHigh) {
      const at = (high - this.#baseHigh) * 2 ** 32 + (low - this.#baseLow) - list;
      const pfn = at / bytes;
      if (at < 0 || at >= this.#endBytes || !Number.isInteger(pfn)) {
        throw new Refusal(
          "foreign-pointer",
          `a link to ${hex(BigInt(high) << 32n | BigInt(low))} in list ${hex(head)}`,
        );
      }
      if (++count > most) throw new Refusal("count", `list ${hex(head)} has more than ${most} blocks`);
      const pageNumber = Math.floor(at / PAGE_BYTES);
      const words = this.#pages.get(pageNumber) ?? this.#load(pageNumber);
      const struct = (at - pageNumber * PAGE_BYTES) / 4;
      const link = struct + list / 4;
      if (pfn % pages !== 0 || words[struct + orderAt / 4] !== order || words[struct + orderAt / 4 + 1] !== 0) {
        throw new Refusal("block", `frame ${pfn} is no free block of order ${order}`);
      }
      if (words[link + 2] !== beforeLow || words[link + 3] !== beforeHigh) {
        throw new Refusal("links", `the block at frame ${pfn} does not point back`);
      }
      const index = this.#ram.indexOf(pfn, pages);
      if (index < 0 || pfn < firstPfn || pfn + pages > endPfn) {
        throw new Refusal("foreign-pointer", `the block at frame ${pfn} is not in its zone's RAM`);
      }
      if (!this.#free.addRun(index, pages)) throw new Refusal("duplicate", `frame ${pfn} is free twice`);
      if (++this.#blocks % BLOCKS_A_CHECK === 0) this.#kernel.checkTime();
      beforeLow = low;
      beforeHigh = high;
      low = words[link] ?? 0;
      high = words[link + 1] ?? 0;
    }
    if (last !== (BigInt(beforeHigh) << 32n | BigInt(beforeLow))) {
      throw new Refusal("links", `list ${hex(head)} ends elsewhere than its head says`);
    }
    return count;
  }

  /** Page `number` of the array, as 32-bit words. No page struct lies across two. */
  #load(number: number): Uint32Array {
    const address = this.#base + BigInt(number) * BigInt(PAGE_BYTES);
    const region = Math.floor(number / PAGES_A_REGION);
    let leaf = this.#leaves.get(region);
    if (leaf === undefined || address < leaf.address || (address - leaf.address) >> 12n >= leaf.pages) {
      leaf = this.#kernel.leafOf(address);
      if (leaf.pages > 1n) this.#leaves.set(region, leaf);
    }
    const words = this.#kernel.frame(leaf.first + ((address - leaf.address) >> 12n));
    this.#pages.set(number, words);
    return words;
  }
}
