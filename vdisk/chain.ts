/** A disk: a writable layer over frozen ones. Offsets and lengths are bytes, in multiples of a sector. */
import { DiskError } from "./errors.ts";
import { ABSENT, FIRST_POSITION, type Layer, MISSING, type WritableLayer, ZERO } from "./layer.ts";
import { BLOCK_BYTES, SECTOR_BYTES } from "./ports.ts";

export class Chain {
  readonly byteLength: number;
  /** Top first. */
  #layers: readonly Layer[];
  #top: WritableLayer | undefined;
  readonly #scratch = new Uint8Array(BLOCK_BYTES);
  /** Where the last `#find` looked: a field, since an object a block would be garbage on the hot path. */
  #foundIn: Layer | undefined;

  /** `below` is the frozen layers, top first; without `top` the disk is read-only. */
  constructor(top: WritableLayer | undefined, below: readonly Layer[]) {
    this.#top = top;
    this.#layers = top === undefined ? below : [top, ...below];
    const first = this.#layers[0];
    if (first === undefined) throw new DiskError("open a disk", "INVALID", "it has no layer");
    this.byteLength = first.byteLength;
  }

  get layers(): readonly Layer[] {
    return this.#layers;
  }
  get writable(): boolean {
    return this.#top !== undefined;
  }

  /** Puts a fresh layer of the same size on top; the old top is frozen by the caller. */
  push(top: WritableLayer): void {
    if (top.byteLength !== this.byteLength) {
      throw new DiskError(`put ${top.path} on a disk`, "INVALID", "a disk keeps its size");
    }
    this.#top = top;
    this.#layers = [top, ...this.#layers];
  }

  /** Blocks that must be fetched before the operation: for a write those that it covers in part. */
  missing(offset: number, byteLength: number, operation: "read" | "write"): number[] {
    const blocks: number[] = [];
    const end = offset + byteLength;
    for (let block = Math.floor(offset / BLOCK_BYTES); block * BLOCK_BYTES < end; block++) {
      const whole = block * BLOCK_BYTES >= offset && (block + 1) * BLOCK_BYTES <= end;
      if (operation === "write" && whole) continue;
      if (this.#find(block) === MISSING) blocks.push(block);
    }
    return blocks;
  }

  /** No layer holds bytes of the block: it reads as zeros. */
  isHole(block: number): boolean {
    return this.#find(block) === ZERO;
  }

  read(into: Uint8Array, offset: number): void {
    this.#checkRange(offset, into.byteLength);
    let done = 0;
    while (done < into.byteLength) {
      const block = Math.floor((offset + done) / BLOCK_BYTES);
      const within = (offset + done) % BLOCK_BYTES;
      const wantedBlocks = Math.ceil((within + into.byteLength - done) / BLOCK_BYTES);
      const position = this.#find(block);
      const layer = this.#foundIn;
      let blocks = 1;
      if (position === MISSING) throw new DiskError("read a disk", "NO_SOURCE", `block ${block} was not fetched`);
      if (layer === undefined) {
        while (blocks < wantedBlocks && this.#find(block + blocks) === ZERO) blocks++;
      } else {
        while (blocks < wantedBlocks && this.#find(block + blocks) === position + blocks && this.#foundIn === layer) {
          blocks++;
        }
      }
      const part = into.subarray(done, Math.min(into.byteLength, done + blocks * BLOCK_BYTES - within));
      if (layer === undefined) part.fill(0);
      else layer.readAt(position, within, part);
      done += part.byteLength;
    }
  }

  write(bytes: Uint8Array, offset: number): void {
    this.#checkRange(offset, bytes.byteLength);
    const top = this.#writableTop();
    let done = 0;
    while (done < bytes.byteLength) {
      const block = Math.floor((offset + done) / BLOCK_BYTES);
      const within = (offset + done) % BLOCK_BYTES;
      const left = bytes.byteLength - done;
      const position = top.locate(block);
      if (position >= FIRST_POSITION) {
        let blocks = 1;
        const wanted = Math.ceil((within + left) / BLOCK_BYTES);
        while (blocks < wanted && top.locate(block + blocks) === position + blocks) blocks++;
        const part = bytes.subarray(done, done + Math.min(left, blocks * BLOCK_BYTES - within));
        top.writeAt(position, within, part);
        done += part.byteLength;
      } else if (within === 0 && left >= BLOCK_BYTES) {
        let blocks = 1;
        const wanted = Math.floor(left / BLOCK_BYTES);
        while (blocks < wanted && top.locate(block + blocks) < FIRST_POSITION) blocks++;
        done += this.#writeNew(top, block, blocks, bytes.subarray(done, done + blocks * BLOCK_BYTES));
      } else {
        const part = bytes.subarray(done, done + Math.min(left, BLOCK_BYTES - within));
        this.#readBlock(block);
        this.#scratch.set(part, within);
        this.#writeNew(top, block, 1, this.#scratch);
        done += part.byteLength;
      }
    }
  }

  /** Makes the whole blocks of the range read as zeros; the rest of it stays. */
  discard(offset: number, byteLength: number): void {
    this.#checkRange(offset, byteLength);
    const first = Math.ceil(offset / BLOCK_BYTES);
    const end = Math.floor((offset + byteLength) / BLOCK_BYTES);
    if (end > first) this.#writableTop().zero(first, end - first);
  }

  flush(): void {
    this.#top?.flush();
  }

  /** The block's content into `#scratch`; past the disk's end (its last block may be a part) zeros. */
  #readBlock(block: number): void {
    const start = block * BLOCK_BYTES;
    const length = Math.min(BLOCK_BYTES, this.byteLength - start);
    this.#scratch.fill(0, length);
    this.read(this.#scratch.subarray(0, length), start);
  }

  /** Blocks that the top does not hold: bytes before the entries that name them. Returns the bytes written. */
  #writeNew(top: WritableLayer, block: number, count: number, bytes: Uint8Array): number {
    const placed = top.place(count);
    const length = placed.count * BLOCK_BYTES;
    try {
      top.writeAt(placed.position, 0, bytes.subarray(0, length));
    } catch (error) {
      top.giveBack(placed.position, placed.count);
      throw error;
    }
    top.map(block, placed.position, placed.count);
    return length;
  }

  /** The block's position, its layer in `#foundIn`; or MISSING; or ZERO, with no layer, also for what no layer holds. */
  #find(block: number): number {
    for (const layer of this.#layers) {
      const position = layer.locate(block);
      if (position === ABSENT) continue;
      this.#foundIn = position >= FIRST_POSITION ? layer : undefined;
      return position;
    }
    this.#foundIn = undefined;
    return ZERO;
  }

  #writableTop(): WritableLayer {
    if (this.#top === undefined) throw new DiskError("write to a disk", "FROZEN", "it is read-only");
    return this.#top;
  }

  #checkRange(offset: number, byteLength: number): void {
    if (
      offset % SECTOR_BYTES !== 0 || byteLength % SECTOR_BYTES !== 0 || offset < 0 ||
      offset + byteLength > this.byteLength
    ) {
      throw new DiskError("use a disk", "INVALID", `${byteLength} bytes at ${offset}, of ${this.byteLength}`);
    }
  }
}
