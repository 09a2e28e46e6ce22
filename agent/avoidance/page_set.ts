/** A set of pages of a guest, by their index in its memory map, and the way from a frame number to an index. */

/** As of `MemoryMap` (agent/memory): ascending, disjoint runs of frames that hold RAM. */
export interface RamMap {
  readonly ranges: readonly { readonly first: bigint; readonly pages: number }[];
  readonly pages: number;
}

export class PageSet {
  /** Bit `i % 8` of byte `i / 8` is page `i`. */
  readonly bytes: Uint8Array<ArrayBuffer>;
  /** Pages that there are. */
  readonly length: number;
  #count = 0;

  constructor(length: number) {
    this.length = length;
    this.bytes = new Uint8Array(Math.ceil(length / 8));
  }

  /** Pages in the set. */
  get count(): number {
    return this.#count;
  }

  has(index: number): boolean {
    return index >= 0 && index < this.length && ((this.bytes[index >> 3] ?? 0) >> (index & 7) & 1) === 1;
  }

  /** Adds `pages` pages from `first` on. False, and the set is undefined, where one of them was there already. */
  addRun(first: number, pages: number): boolean {
    if (first < 0 || first + pages > this.length) throw new RangeError(`pages ${first} + ${pages} of ${this.length}`);
    this.#count += pages;
    let index = first;
    const end = first + pages;
    while (index < end) {
      const whole = (index & 7) === 0 && end - index >= 8;
      const mask = whole ? 0xff : 1 << (index & 7);
      const at = index >> 3;
      const old = this.bytes[at] ?? 0;
      if ((old & mask) !== 0) return false;
      this.bytes[at] = old | mask;
      index += whole ? 8 : 1;
    }
    return true;
  }

  /** The runs of the set, ascending, by page index. */
  *runs(): Generator<{ readonly first: number; readonly pages: number }> {
    let first = -1;
    for (let index = 0; index <= this.length; index++) {
      const there = this.has(index);
      if (there && first < 0) first = index;
      if (!there && first >= 0) {
        yield { first, pages: index - first };
        first = -1;
      }
    }
  }
}

interface Run {
  /** Frame number of the first page. */
  first: number;
  /** Index of the first page. */
  readonly index: number;
  pages: number;
}

/** Finds indexes for frame numbers below 2^40, which plain numbers hold exactly. */
export class RamIndex {
  readonly #runs: Run[] = [];
  #last: Run | undefined;

  constructor(map: RamMap) {
    let index = 0;
    for (const { first, pages } of map.ranges) {
      if (first + BigInt(pages) > 1n << 40n) throw new RangeError("a memory map beyond the physical addresses of x86");
      const before = this.#runs.at(-1);
      if (before !== undefined && before.first + before.pages === Number(first)) before.pages += pages;
      else this.#runs.push({ first: Number(first), index, pages });
      index += pages;
    }
  }

  /** The first frame number above all RAM. */
  get end(): number {
    const last = this.#runs.at(-1);
    return last === undefined ? 0 : last.first + last.pages;
  }

  /** The index of frame `pfn`, or -1 unless it and the following, `pages` in all, are RAM. */
  indexOf(pfn: number, pages: number): number {
    let run = this.#last;
    if (run === undefined || pfn < run.first || pfn >= run.first + run.pages) {
      let low = 0;
      let high = this.#runs.length - 1;
      while (low < high) {
        const middle = (low + high + 1) >> 1;
        if ((this.#runs[middle]?.first ?? Infinity) <= pfn) low = middle;
        else high = middle - 1;
      }
      run = this.#runs[low];
      if (run === undefined || pfn < run.first) return -1;
      this.#last = run;
    }
    return pfn + pages <= run.first + run.pages ? run.index + pfn - run.first : -1;
  }
}
