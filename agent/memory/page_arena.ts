import { type Address, type HypercallPort, PAGE_BYTES, type PinnedMemory } from "../../hypercall/ports.ts";

const CHUNK_PAGES = 256;

/** A page's place in a {@link PageArena}. */
export type Slot = number & { readonly __brand: "Slot" };

/** The arena has as many pages as it may have. */
export class ArenaFull extends Error {
  readonly code = "arena-full";
  constructor(limitPages: number) {
    super(`The store of saved pages is full (${limitPages} pages)`);
    this.name = "ArenaFull";
  }
}

/**
 * Copies of guests' pages, in pinned memory so that Xen reads them where they lie. A copy serves every snapshot that needs
 * it: slots are counted. Memory is taken 1 MiB at a time and given back when a chunk is empty.
 */
export class PageArena implements Disposable {
  readonly #port: HypercallPort;
  readonly #limitPages: number;
  readonly #chunks: (PinnedMemory | undefined)[] = [];
  readonly #users: Uint32Array[] = [];
  readonly #usedInChunk: number[] = [];
  readonly #free: number[] = [];
  #pages = 0;

  constructor(port: HypercallPort, limitPages: number) {
    this.#port = port;
    this.#limitPages = limitPages;
  }

  /** Pages in use. */
  get pages(): number {
    return this.#pages;
  }

  /** A slot with one user. Its content is whatever was there. Throws {@link ArenaFull}. */
  take(): Slot {
    if (this.#pages >= this.#limitPages) throw new ArenaFull(this.#limitPages);
    if (this.#free.length === 0) this.#grow();
    const slot = this.#free.pop();
    if (slot === undefined) throw new ArenaFull(this.#limitPages);
    const chunk = Math.floor(slot / CHUNK_PAGES);
    const users = this.#users[chunk];
    if (users === undefined) throw new RangeError(`slot ${slot} has no chunk`);
    users[slot % CHUNK_PAGES] = 1;
    this.#usedInChunk[chunk] = (this.#usedInChunk[chunk] ?? 0) + 1;
    this.#pages++;
    return slot as Slot;
  }

  /** One user more. */
  retain(slot: Slot): void {
    const users = this.#users[Math.floor(slot / CHUNK_PAGES)];
    if (users === undefined || users[slot % CHUNK_PAGES] === 0) throw new RangeError(`slot ${slot} is free`);
    users[slot % CHUNK_PAGES] = (users[slot % CHUNK_PAGES] ?? 0) + 1;
  }

  /** One user less; the last one's leaving frees the slot. */
  release(slot: Slot): void {
    const chunk = Math.floor(slot / CHUNK_PAGES);
    const users = this.#users[chunk];
    const count = users?.[slot % CHUNK_PAGES] ?? 0;
    if (users === undefined || count === 0) throw new RangeError(`slot ${slot} is free`);
    users[slot % CHUNK_PAGES] = count - 1;
    if (count > 1) return;
    this.#pages--;
    this.#free.push(slot);
    const used = (this.#usedInChunk[chunk] ?? 1) - 1;
    this.#usedInChunk[chunk] = used;
    // One empty chunk is kept, so that a slot that comes and goes does not map and unmap.
    if (used === 0 && this.#free.length > CHUNK_PAGES) this.#shrink(chunk);
  }

  address(slot: Slot): Address {
    const chunk = this.#chunks[Math.floor(slot / CHUNK_PAGES)];
    if (chunk === undefined) throw new RangeError(`slot ${slot} is free`);
    return (chunk.address + BigInt((slot % CHUNK_PAGES) * PAGE_BYTES)) as Address;
  }

  bytes(slot: Slot): Uint8Array<ArrayBuffer> {
    const chunk = this.#chunks[Math.floor(slot / CHUNK_PAGES)];
    if (chunk === undefined) throw new RangeError(`slot ${slot} is free`);
    const offset = (slot % CHUNK_PAGES) * PAGE_BYTES;
    return chunk.bytes.subarray(offset, offset + PAGE_BYTES);
  }

  [Symbol.dispose](): void {
    for (const chunk of this.#chunks) chunk?.[Symbol.dispose]();
    this.#chunks.length = 0;
    this.#free.length = 0;
    this.#pages = 0;
  }

  #grow(): void {
    let at = this.#chunks.indexOf(undefined);
    if (at < 0) at = this.#chunks.length;
    this.#chunks[at] = this.#port.allocate(CHUNK_PAGES * PAGE_BYTES);
    this.#users[at] = new Uint32Array(CHUNK_PAGES);
    this.#usedInChunk[at] = 0;
    for (let page = CHUNK_PAGES - 1; page >= 0; page--) this.#free.push(at * CHUNK_PAGES + page);
  }

  #shrink(chunk: number): void {
    const kept = this.#free.filter((slot) => Math.floor(slot / CHUNK_PAGES) !== chunk);
    this.#free.splice(0, this.#free.length, ...kept);
    this.#chunks[chunk]?.[Symbol.dispose]();
    this.#chunks[chunk] = undefined;
  }
}
