/**
 * Fragments become blocks, in a bounded number of slots of pinned memory. Fragments of different encodings, or compressed ones of
 * different servers, never mix: a fragment that does not fit what a slot holds starts it anew.
 */
import type { Address, PinnedMemory } from "../hypercall/ports.ts";
import type { DataReader } from "./codec.ts";
import { ALL_FRAGMENTS, BLOCK_BYTES, fragmentLength } from "./protocol.ts";

export interface Slot {
  readonly address: Address;
  readonly bytes: Uint8Array<ArrayBuffer>;
  /** -1: free. */
  key: number;
  sender: number;
  codec: number;
  fragments: number;
  encodedLength: number;
  have: number;
}

/** One number for a block of an object: `slot` below 256, `index` below 2^28. */
export function blockKey(slot: number, index: number): number {
  return slot * 2 ** 28 + index;
}

export class Reassembly {
  /** Blocks that were given up, partly assembled, for room. */
  evicted = 0;
  readonly #slots: Slot[];
  readonly #byKey = new Map<number, Slot>();
  readonly #free: Slot[];
  #hand = 0;

  constructor(memory: PinnedMemory, count: number) {
    this.#slots = Array.from({ length: count }, (_, at) => ({
      address: memory.address + BigInt(at * BLOCK_BYTES) as Address,
      bytes: memory.bytes.subarray(at * BLOCK_BYTES, (at + 1) * BLOCK_BYTES),
      key: -1,
      sender: 0,
      codec: 0,
      fragments: 0,
      encodedLength: 0,
      have: 0,
    }));
    this.#free = [...this.#slots];
  }

  get used(): number {
    return this.#byKey.size;
  }

  /** Adds the reader's fragment. The slot when the block is whole now: take it, then {@link release} it. */
  add(key: number, sender: number, record: DataReader, bytes: Uint8Array): Slot | undefined {
    let slot = this.#byKey.get(key);
    if (slot === undefined) {
      slot = this.#free.pop() ?? this.#evict();
      slot.key = key;
      slot.have = 0;
      this.#byKey.set(key, slot);
    }
    const same = slot.sender === sender && slot.codec === record.codec && slot.fragments === record.fragments &&
      slot.encodedLength === record.encodedLength;
    if (slot.have === 0 || !same) {
      slot.sender = sender;
      slot.codec = record.codec;
      slot.fragments = record.fragments;
      slot.encodedLength = record.encodedLength;
      slot.have = 0;
    }
    const bit = 1 << record.fragment;
    if ((slot.have & bit) === 0) {
      const each = fragmentLength(record.encodedLength, record.fragments, 0);
      slot.bytes.set(bytes.subarray(record.start, record.start + record.length), record.fragment * each);
      slot.have |= bit;
    }
    return slot.have === (1 << slot.fragments) - 1 ? slot : undefined;
  }

  /** The fragments that a block lacks; all, where nothing of it came. */
  missing(key: number): number {
    const slot = this.#byKey.get(key);
    return slot === undefined || slot.have === 0 ? ALL_FRAGMENTS : ((1 << slot.fragments) - 1) & ~slot.have;
  }

  release(key: number): void {
    const slot = this.#byKey.get(key);
    if (slot === undefined) return;
    this.#byKey.delete(key);
    slot.key = -1;
    slot.have = 0;
    this.#free.push(slot);
  }

  /** Gives up the blocks of an object. */
  releaseObject(objectSlot: number): void {
    for (const key of this.#byKey.keys()) if (Math.floor(key / 2 ** 28) === objectSlot) this.release(key);
  }

  #evict(): Slot {
    const slot = this.#slots[this.#hand];
    if (slot === undefined) throw new RangeError("A reassembly needs at least one slot");
    this.#hand = (this.#hand + 1) % this.#slots.length;
    this.#byKey.delete(slot.key);
    this.evicted++;
    return slot;
  }
}
