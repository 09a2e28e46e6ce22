/**
 * A frozen chain of another host, as one layer: a local qcow2 cache (shared by all clones here) of what was fetched, and the
 * source of the rest. The cache's backing name carries a scheme that no other tool knows, so that nobody reads its holes as data.
 */
import { DiskError } from "./errors.ts";
import { ABSENT, type Layer, MISSING } from "./layer.ts";
import { BLOCK_BYTES, type BlockArrival, type BlockSource } from "./ports.ts";
import type { Qcow2Image } from "./qcow2/image.ts";

const SCHEME = "snowflock-remote:";

export function remoteBackingName(chainId: string): string {
  return SCHEME + chainId;
}

/** The id of the chain that a cache's backing name stands for; undefined for a file's name. */
export function remoteChainId(backingName: string): string | undefined {
  return backingName.startsWith(SCHEME) ? backingName.slice(SCHEME.length) : undefined;
}

/** Told when the blocks it waits for are here, or one of them cannot be had. */
export type Waiter = (failure: string | undefined) => void;

interface Wait {
  left: number;
  readonly waiter: Waiter;
  failure: string | undefined;
}

export class RemoteLayer implements Layer, Disposable {
  readonly #cache: Qcow2Image;
  readonly #source: BlockSource;
  /** Waits by the block they need. Bounded by the rings: each request of a guest waits for its own blocks at most. */
  readonly #waits = new Map<number, Wait[]>();
  #fetched = 0;

  constructor(cache: Qcow2Image, source: BlockSource) {
    this.#cache = cache;
    this.#source = source;
  }

  get path(): string {
    return this.#cache.path;
  }
  get byteLength(): number {
    return this.#cache.byteLength;
  }
  get fd(): number {
    return this.#source.fd;
  }
  /** Blocks stored since the layer was opened. */
  get fetchedBlocks(): number {
    return this.#fetched;
  }

  locate(block: number): number {
    if (block * BLOCK_BYTES >= this.byteLength) return ABSENT;
    const position = this.#cache.locate(block);
    return position === ABSENT ? MISSING : position;
  }

  readAt(position: number, within: number, into: Uint8Array): void {
    this.#cache.readAt(position, within, into);
  }

  /** Fetches `blocks` (at least one, each MISSING); each block is asked for once, however many wait for it. */
  fetch(blocks: readonly number[], waiter: Waiter): void {
    const wait: Wait = { left: blocks.length, waiter, failure: undefined };
    const wanted: number[] = [];
    for (const block of blocks) {
      const others = this.#waits.get(block);
      if (others === undefined) {
        this.#waits.set(block, [wait]);
        wanted.push(block);
      } else {
        others.push(wait);
      }
    }
    if (wanted.length > 0) this.#source.request(wanted);
  }

  /** Stores what has arrived and tells those who waited for it. */
  receive(): void {
    for (const arrival of this.#source.receive()) {
      const failure = this.#store(arrival);
      const waits = this.#waits.get(arrival.block);
      if (waits === undefined) continue;
      this.#waits.delete(arrival.block);
      for (const wait of waits) {
        wait.failure ??= failure;
        if (--wait.left === 0) wait.waiter(wait.failure);
      }
    }
  }

  /** Makes what was fetched durable. Losing it costs a fetch, nothing else. */
  flush(): void {
    this.#cache.flush();
  }

  [Symbol.dispose](): void {
    this.#source[Symbol.dispose]();
    this.#cache[Symbol.dispose]();
  }

  /** The reason if the block cannot be had. */
  #store(arrival: BlockArrival): string | undefined {
    const { block } = arrival;
    const known = Number.isInteger(block) && block >= 0 && this.locate(block) !== ABSENT;
    if (!known) return `block ${block} lies outside the disk`;
    if (arrival.kind === "failed") return arrival.reason;
    // A block never changes once frozen: the first copy is as good as any later one.
    if (this.locate(block) !== MISSING) return undefined;
    if (arrival.kind === "data" && arrival.bytes.byteLength !== BLOCK_BYTES) {
      return `block ${block} arrived with ${arrival.bytes.byteLength} bytes`;
    }
    try {
      if (arrival.kind === "zero") {
        this.#cache.zero(block, 1);
      } else {
        const { position } = this.#cache.place(1);
        this.#cache.writeAt(position, 0, arrival.bytes);
        this.#cache.map(block, position, 1);
      }
    } catch (error) {
      if (!(error instanceof DiskError)) throw error;
      return error.message;
    }
    this.#fetched++;
    return undefined;
  }
}
