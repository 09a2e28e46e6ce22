/** What a receiver knows of each block of an object: memory for the parts of the object that were touched only. */
import { MAX_RANGE_BLOCKS } from "./protocol.ts";

/** `Wanted` waits in the queue, `Asked` at the server; `Lost` is about to be asked for again. */
export const State = { None: 0, Wanted: 1, Asked: 2, Lost: 3, Urgent: 4, Done: 5 } as const;

/** A block's place in its chunk of {@link MAX_RANGE_BLOCKS}: the low bits of its index. */
export const AT = MAX_RANGE_BLOCKS - 1;

export interface BlockChunk {
  readonly state: Uint8Array;
  readonly attempts: Uint8Array;
  /** 1: it has its entry in the queue, be it one of before a cancel. */
  readonly queued: Uint8Array;
  /** Order of the last asking. */
  readonly order: Float64Array;
}

export class BlockStates {
  /** By index >> 12. */
  readonly #chunks = new Map<number, BlockChunk>();
  #lastNumber = -1;
  #last = newChunk();

  /** The chunk that holds block `index`, at `index & AT`. */
  of(index: number): BlockChunk {
    const number = index >>> 12;
    if (number === this.#lastNumber) return this.#last;
    let chunk = this.#chunks.get(number);
    if (chunk === undefined) {
      chunk = newChunk();
      this.#chunks.set(number, chunk);
    }
    this.#lastNumber = number;
    this.#last = chunk;
    return chunk;
  }
}

function newChunk(): BlockChunk {
  return {
    state: new Uint8Array(MAX_RANGE_BLOCKS),
    attempts: new Uint8Array(MAX_RANGE_BLOCKS),
    queued: new Uint8Array(MAX_RANGE_BLOCKS),
    order: new Float64Array(MAX_RANGE_BLOCKS),
  };
}
