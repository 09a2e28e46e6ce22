/**
 * A guest kernel's virtual memory, by its page tables (Intel SDM volume 3, 4.5: 4-level and 5-level paging; huge pages of 2 MiB
 * and 1 GiB). Every table and address is the guest's word: an address that leads nowhere ends in a {@link Refusal}.
 */
import { type Gfn, PAGE_BYTES } from "../../hypercall/ports.ts";
import type { GuestMemory } from "./guest_memory.ts";
import { Refusal } from "./refusal.ts";

/** What a walk may cost. */
export interface WalkBudget {
  /** Most frames of the guest that are read, page tables included. */
  readonly frames: number;
  /** Whether time is up. Asked now and then. */
  readonly expired?: () => boolean;
}

/** A vCPU's registers that say where the page tables are. */
export interface PagingRegisters {
  readonly cr3: bigint;
  readonly cr4: bigint;
}

/** A run of virtual pages that one page-table entry maps. */
export interface Leaf {
  /** Address of the run's first byte. */
  readonly address: bigint;
  readonly first: Gfn;
  /** 1, 512 or 262,144. */
  readonly pages: bigint;
}

/** CR4.LA57: five levels. */
const LA57 = 1n << 12n;
const PRESENT = 1n;
const PAGE_SIZE = 1n << 7n;
/** Bits 12..51 of an entry. */
const FRAME_MASK = (1n << 40n) - 1n;
/** With page-table isolation CR3 of user mode is the kernel's with this bit set (Linux, arch/x86/entry/calling.h). */
const ISOLATED_USER_TABLE = 1n << 12n;

/** `0x...`, for messages. */
export function hex(value: bigint): string {
  return `0x${value.toString(16)}`;
}

export class KernelMemory {
  readonly #memory: GuestMemory;
  readonly #levels: number;
  readonly #budget: WalkBudget;
  readonly #frames = new Map<bigint, Uint32Array>();
  readonly #pages = new Map<bigint, Uint32Array>();
  #root: bigint;

  constructor(memory: GuestMemory, registers: PagingRegisters, budget: WalkBudget) {
    this.#memory = memory;
    this.#levels = (registers.cr4 & LA57) === 0n ? 4 : 5;
    this.#budget = budget;
    this.#root = registers.cr3 >> 12n & FRAME_MASK;
  }

  /** Frames of the guest read so far. */
  get framesRead(): number {
    return this.#frames.size;
  }

  /**
   * Where `address` is not mapped, tries the kernel's half of an isolated pair of page tables: a running guest's CR3 may be that of user
   * mode, which maps next to nothing of the kernel.
   */
  useKernelTables(address: bigint): void {
    try {
      this.leafOf(address);
    } catch (error) {
      const user = ISOLATED_USER_TABLE >> 12n;
      if (!(error instanceof Refusal) || error.reason === "page-budget" || (this.#root & user) === 0n) throw error;
      this.#root -= user;
      this.leafOf(address);
    }
  }

  /** Throws a time-budget refusal once time is up. */
  checkTime(): void {
    if (this.#budget.expired?.()) throw new Refusal("time-budget", `time is up after ${this.framesRead} frames`);
  }

  /** A frame as 32-bit words. */
  frame(gfn: bigint): Uint32Array {
    const words = this.tryFrame(gfn);
    if (words === undefined) throw new Refusal("unreadable", `frame ${hex(gfn)} cannot be read`);
    return words;
  }

  /** A frame as 32-bit words, or undefined where it cannot be read. */
  tryFrame(gfn: bigint): Uint32Array | undefined {
    const known = this.#frames.get(gfn);
    if (known !== undefined) return known;
    if (this.#frames.size >= this.#budget.frames) {
      throw new Refusal("page-budget", `more than ${this.#budget.frames} frames would be read`);
    }
    const bytes = this.#memory.read(gfn as Gfn);
    if (bytes === undefined || bytes.length < PAGE_BYTES) return undefined;
    const words = bytes.byteOffset % 4 === 0
      ? new Uint32Array(bytes.buffer, bytes.byteOffset, PAGE_BYTES / 4)
      : new Uint32Array(bytes.slice(0, PAGE_BYTES).buffer);
    this.#frames.set(gfn, words);
    return words;
  }

  /** The run of pages that holds `address`, which must be the kernel's (the upper half). */
  leafOf(address: bigint): Leaf {
    const bits = BigInt(12 + 9 * this.#levels);
    if (address >> (bits - 1n) !== (1n << (65n - bits)) - 1n) {
      throw new Refusal("foreign-pointer", `${hex(address)} is no kernel address`);
    }
    let table = this.#root;
    for (let level = this.#levels - 1; level >= 0; level--) {
      const shift = BigInt(12 + 9 * level);
      const entry = wordPair(this.frame(table), Number(address >> shift & 511n) * 8);
      if ((entry & PRESENT) === 0n) throw new Refusal("unmapped", `${hex(address)} is not mapped`);
      const target = entry >> 12n & FRAME_MASK;
      const huge = level > 0 && (entry & PAGE_SIZE) !== 0n;
      if (huge && level > 2) throw new Refusal("unmapped", `${hex(address)}: a huge page at level ${level + 1}`);
      if (level === 0 || huge) {
        const pages = 1n << BigInt(9 * level);
        return { address: address >> shift << shift, first: target / pages * pages as Gfn, pages };
      }
      table = target;
    }
    throw new Refusal("unmapped", `${hex(address)} is not mapped`);
  }

  /** The page that holds `address`, as 32-bit words. */
  page(address: bigint): Uint32Array {
    const number = address >> 12n;
    const known = this.#pages.get(number);
    if (known !== undefined) return known;
    const leaf = this.leafOf(address);
    const words = this.frame(leaf.first + (number - (leaf.address >> 12n)));
    this.#pages.set(number, words);
    return words;
  }

  /** An unsigned long at `address`, which must be a multiple of 8. */
  u64(address: bigint): bigint {
    if (address % 8n !== 0n) throw new Refusal("foreign-pointer", `${hex(address)} is not aligned`);
    return wordPair(this.page(address), Number(address & 0xfffn));
  }

  /** An int at `address`, a multiple of 4. */
  u32(address: bigint): number {
    if (address % 4n !== 0n) throw new Refusal("foreign-pointer", `${hex(address)} is not aligned`);
    return this.page(address)[Number(address & 0xfffn) / 4] ?? 0;
  }

  /** A copy of `byteLength` bytes from `address` on. The caller bounds the length. */
  bytes(address: bigint, byteLength: number): Uint8Array<ArrayBuffer> {
    const copy = new Uint8Array(byteLength);
    for (let done = 0; done < byteLength;) {
      const at = address + BigInt(done);
      const offset = Number(at & 0xfffn);
      const words = this.page(at);
      const part = Math.min(PAGE_BYTES - offset, byteLength - done);
      copy.set(new Uint8Array(words.buffer, words.byteOffset + offset, part), done);
      done += part;
    }
    return copy;
  }
}

function wordPair(words: Uint32Array, byteOffset: number): bigint {
  return BigInt(words[byteOffset / 4 + 1] ?? 0) << 32n | BigInt(words[byteOffset / 4] ?? 0);
}
