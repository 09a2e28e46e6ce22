/** Virtual addresses of a simulated process: what a hypercall's argument names by address. */
import { type Address, PAGE_BYTES } from "../../hypercall/ports.ts";

export interface Region {
  readonly base: bigint;
  readonly bytes: Uint8Array<ArrayBuffer>;
  /** Whether the page can be touched: a foreign mapping has none where its frame had an error. */
  readonly present: (page: number) => boolean;
}

const PAGE = BigInt(PAGE_BYTES);

export class AddressSpace {
  #next: bigint;
  /** In ascending order of `base`: addresses are never used twice, so that a stale one is a fault. */
  readonly #regions: Region[] = [];

  constructor(base: bigint = 0x7f00_0000_0000n) {
    this.#next = base;
  }

  /** Gives the bytes an address, with an unmapped page behind them. */
  add(bytes: Uint8Array<ArrayBuffer>, present: (page: number) => boolean = () => true): Address {
    const base = this.#next;
    const pages = BigInt(Math.ceil(bytes.byteLength / PAGE_BYTES));
    this.#next += (pages + 1n) * PAGE;
    this.#regions.push({ base, bytes, present });
    return base as Address;
  }

  remove(address: Address): void {
    const index = this.#find(address);
    if (this.#regions[index]?.base !== address) throw new Error("the simulator unmapped what was not mapped");
    this.#regions.splice(index, 1);
  }

  /** The bytes at an address, to read or write; undefined is a page fault (EFAULT). */
  resolve(address: bigint, byteLength: number): Uint8Array<ArrayBuffer> | undefined {
    const region = this.#regions[this.#find(address)];
    if (region === undefined || address < region.base || byteLength < 0) return undefined;
    const offset = Number(address - region.base);
    if (offset + byteLength > region.bytes.byteLength) return undefined;
    const lastPage = Math.floor((offset + Math.max(byteLength, 1) - 1) / PAGE_BYTES);
    for (let page = Math.floor(offset / PAGE_BYTES); page <= lastPage; page++) {
      if (!region.present(page)) return undefined;
    }
    return region.bytes.subarray(offset, offset + byteLength);
  }

  get mappedRegions(): number {
    return this.#regions.length;
  }

  /** Index of the last region that starts at or below the address. */
  #find(address: bigint): number {
    let low = 0;
    let high = this.#regions.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      const region = this.#regions[middle];
      if (region !== undefined && region.base <= address) low = middle + 1;
      else high = middle;
    }
    return low - 1;
  }
}
