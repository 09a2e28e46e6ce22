/** One layer of a disk: where its blocks are, and their bytes. */

/** `locate`'s answers that are not positions. */
export const ABSENT = 0;
/** The block reads as zeros, whatever is below. */
export const ZERO = 1;
/** The block is on another host and was not fetched yet. */
export const MISSING = -1;
/** The smallest position. Blocks at neighbouring positions are neighbours in the file. */
export const FIRST_POSITION = 2;

export interface Layer {
  readonly path: string;
  /** The size that the layer gives its disk, in bytes; a multiple of 512. */
  readonly byteLength: number;
  /** ABSENT, ZERO, MISSING, or a position. Any block number is allowed; those past the end are ABSENT. */
  locate(block: number): number;
  /** Reads on from byte `within` of the block at `position`, over neighbouring positions. */
  readAt(position: number, within: number, into: Uint8Array): void;
}

export interface WritableLayer extends Layer {
  /** Space for at most `count` (and at least 1) neighbouring blocks; what is not mapped later must be given back. */
  place(count: number): { readonly position: number; readonly count: number };
  giveBack(position: number, count: number): void;
  writeAt(position: number, within: number, bytes: Uint8Array): void;
  /** From now on `count` blocks from `block` are at `position` and after; their bytes were written before. */
  map(block: number, position: number, count: number): void;
  /** The blocks read as zeros from now on. */
  zero(block: number, count: number): void;
  /** Everything written before is durable when this returns. */
  flush(): void;
}
