import type { Domid, Gfn } from "../../hypercall/ports.ts";
import type { Xen } from "../../hypercall/xen_api.ts";

/** A run of guest frames that hold RAM. */
export interface GfnRange {
  readonly first: Gfn;
  readonly pages: number;
}

/** Most pages that a map may have: 256 GiB of RAM. A page's index then fits a u32 on the wire. */
export const MAX_MAP_PAGES = 1 << 26;
/** Most runs that a map may have. */
export const MAX_MAP_RANGES = 1 << 16;

/**
 * Where a guest has RAM, in gfn order. A page has an index, its place in that order, which the memory code and the wire use
 * instead of the gfn: it is dense, whatever holes the guest has.
 */
export class MemoryMap {
  readonly ranges: readonly GfnRange[];
  /** Pages of RAM in all. */
  readonly pages: number;
  readonly #starts: readonly number[];

  /** Throws a RangeError unless `ranges` are ascending, disjoint, non-empty and within the bounds. */
  constructor(ranges: readonly GfnRange[]) {
    if (ranges.length > MAX_MAP_RANGES) throw new RangeError(`a memory map of ${ranges.length} runs is too scattered`);
    const starts: number[] = [];
    let pages = 0;
    let end = 0n;
    for (const range of ranges) {
      if (range.pages <= 0 || !Number.isInteger(range.pages) || range.first < end) {
        throw new RangeError("a memory map's runs must ascend");
      }
      starts.push(pages);
      pages += range.pages;
      end = range.first + BigInt(range.pages);
      if (pages > MAX_MAP_PAGES || end > 1n << 52n) throw new RangeError("a memory map is too large");
    }
    this.ranges = ranges.map(({ first, pages }) => ({ first, pages }));
    this.pages = pages;
    this.#starts = starts;
  }

  /** The gfn of page `index`. */
  gfnAt(index: number): Gfn {
    const at = this.#rangeOfIndex(index);
    const range = this.ranges[at];
    const start = this.#starts[at];
    if (range === undefined || start === undefined || index >= start + range.pages) {
      throw new RangeError(`page ${index} is not in the memory map`);
    }
    return (range.first + BigInt(index - start)) as Gfn;
  }

  /** The index of the page at `gfn`, or -1 where the guest has no RAM. */
  indexOf(gfn: bigint): number {
    let low = 0;
    let high = this.ranges.length - 1;
    while (low <= high) {
      const middle = (low + high) >> 1;
      const range = this.ranges[middle];
      const start = this.#starts[middle];
      if (range === undefined || start === undefined) return -1;
      if (gfn < range.first) high = middle - 1;
      else if (gfn >= range.first + BigInt(range.pages)) low = middle + 1;
      else return start + Number(gfn - range.first);
    }
    return -1;
  }

  /** The gfns of many pages. */
  gfnsOf(indexes: Uint32Array): BigUint64Array<ArrayBuffer> {
    const gfns = new BigUint64Array(indexes.length);
    indexes.forEach((index, at) => gfns[at] = this.gfnAt(index));
    return gfns;
  }

  /** Whether `other` has the same pages. */
  equals(other: MemoryMap): boolean {
    return this.ranges.length === other.ranges.length && this.ranges.every(({ first, pages }, at) => {
      const range = other.ranges[at];
      return range?.first === first && range.pages === pages;
    });
  }

  #rangeOfIndex(index: number): number {
    let low = 0;
    let high = this.#starts.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if ((this.#starts[middle] ?? 0) <= index) low = middle;
      else high = middle - 1;
    }
    return low;
  }
}

const HVM_PARAM_FRAMES = [1, 5, 6, 12, 17, 27, 28, 29, 32] as const;
const NO_PAGE = 0xf;
const SCAN_PAGES = 1 << 14;
/** Below this gfn the toolstack puts its special pages, right under 4 GiB. */
const FOUR_GIB_GFN = 1n << 20n;
const SPECIAL_WINDOW_PAGES = 1n << 14n;

/** A guest's RAM, and the frames beside it that Xen and the back ends use. */
export interface DiscoveredMemory {
  readonly map: MemoryMap;
  /** HVM parameters that name a frame, by parameter number: store ring, console, identity page table, rings. */
  readonly frames: ReadonlyMap<number, Gfn>;
}

/**
 * Finds where a domain has RAM by asking Xen for the type of each frame, from where RAM is likely until as many pages are
 * found as the domain has (a guest of 128 MiB has its special pages just under 4 GiB: a million frames away). Frames that HVM
 * parameters name are not RAM. A page that is paged out shows as no page: a clone's map is its parent's, not found here.
 */
export function discoverMemory(xen: Xen, domid: Domid): DiscoveredMemory {
  const frames = new Map<number, Gfn>();
  for (const index of HVM_PARAM_FRAMES) {
    const gfn = xen.hvmParam(domid, index);
    if (gfn !== 0n) frames.set(index, gfn as Gfn);
  }
  const special = new Set<bigint>(frames.values());
  const total = xen.domainInfo(domid)?.totalPages ?? 0n;
  const end = xen.maximumGfn(domid) + 1n;
  const found = new Map<bigint, Uint8Array>();
  let seen = 0n;
  const scan = (first: bigint): void => {
    if (found.has(first) || first >= end) return;
    const pages = Number(end - first < BigInt(SCAN_PAGES) ? end - first : BigInt(SCAN_PAGES));
    const gfns = BigUint64Array.from({ length: pages }, (_, at) => first + BigInt(at));
    const types = xen.pageTypes(domid, gfns);
    found.set(first, types);
    for (const type of types) if (type !== NO_PAGE) seen += 1n;
  };
  scan(FOUR_GIB_GFN - SPECIAL_WINDOW_PAGES);
  for (let first = 0n; first < end && seen < total; first += BigInt(SCAN_PAGES)) scan(first);
  const ranges: { first: Gfn; pages: number }[] = [];
  for (const [first, types] of [...found].toSorted(([a], [b]) => (a < b ? -1 : 1))) {
    types.forEach((type, at) => {
      const gfn = first + BigInt(at);
      if (type === NO_PAGE || special.has(gfn)) return;
      const last = ranges.at(-1);
      if (last !== undefined && last.first + BigInt(last.pages) === gfn) last.pages++;
      else ranges.push({ first: gfn as Gfn, pages: 1 });
    });
  }
  return { map: new MemoryMap(ranges), frames };
}
