/** A raw file or block device: the base of a disk, and, until the first fork, possibly all of it. */
import { FIRST_POSITION, type WritableLayer } from "./layer.ts";
import { DiskError } from "./errors.ts";
import { BLOCK_BYTES, type FilePort, SECTOR_BYTES } from "./ports.ts";

export class RawLayer implements WritableLayer, Disposable {
  readonly #file: FilePort;
  readonly byteLength: number;
  readonly #blocks: number;
  readonly #writable: boolean;
  #frozen = false;
  #unsynced = false;
  #failure: unknown;

  constructor(file: FilePort, options: { readonly write: boolean }) {
    this.#file = file;
    this.#writable = options.write;
    this.byteLength = Math.floor(file.size() / SECTOR_BYTES) * SECTOR_BYTES;
    this.#blocks = Math.ceil(this.byteLength / BLOCK_BYTES);
    if (this.byteLength === 0) throw new DiskError(`open disk ${file.path}`, "UNSUPPORTED", "it holds no sector");
  }

  get path(): string {
    return this.#file.path;
  }
  get frozen(): boolean {
    return this.#frozen;
  }

  locate(block: number): number {
    return block < this.#blocks ? block + FIRST_POSITION : 0;
  }

  readAt(position: number, within: number, into: Uint8Array): void {
    const got = this.#file.read(into, (position - FIRST_POSITION) * BLOCK_BYTES + within);
    into.fill(0, got);
  }

  place(): never {
    throw new DiskError(`write to disk ${this.path}`, "INVALID", "past its end");
  }
  giveBack(): void {}
  map(): void {}

  writeAt(position: number, within: number, bytes: Uint8Array): void {
    this.#checkWritable();
    const offset = (position - FIRST_POSITION) * BLOCK_BYTES + within;
    if (offset + bytes.byteLength > this.byteLength) this.place();
    this.#unsynced = true;
    this.#file.write(bytes, offset);
  }

  zero(block: number, count: number): void {
    this.#checkWritable();
    const offset = block * BLOCK_BYTES;
    this.#unsynced = true;
    this.#file.punchHole(offset, Math.min(count * BLOCK_BYTES, this.byteLength - offset));
  }

  flush(): void {
    if (!this.#unsynced) return;
    try {
      this.#file.sync();
    } catch (cause) {
      this.#failure = cause;
      throw cause;
    }
    this.#unsynced = false;
  }

  freeze(): void {
    this.flush();
    this.#frozen = true;
    this.#file.share();
  }

  [Symbol.dispose](): void {
    try {
      if (this.#failure === undefined) this.flush();
    } finally {
      this.#file[Symbol.dispose]();
    }
  }

  #checkWritable(): void {
    if (this.#failure !== undefined) {
      throw new DiskError(`write to disk ${this.path}`, "FAILED", "an earlier flush failed", { cause: this.#failure });
    }
    if (!this.#writable || this.#frozen) throw new DiskError(`write to disk ${this.path}`, "FROZEN", "it is read-only");
  }
}
