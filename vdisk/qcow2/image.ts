/** A qcow2 image as a layer of a disk. */
import { DiskError } from "../errors.ts";
import { FIRST_POSITION, type WritableLayer, ZERO } from "../layer.ts";
import type { FilePort } from "../ports.ts";
import { ClusterMap } from "./cluster_map.ts";
import { ClusterSpace } from "./cluster_space.ts";
import {
  type Backing,
  CLUSTER_BYTES,
  encodeHeader,
  FROZEN_OFFSET,
  type Header,
  INCOMPATIBLE_OFFSET,
  parseHeader,
  planHeader,
} from "./header.ts";
import { scan, unusedClusters } from "./scan.ts";

export interface OpenImageOptions {
  readonly write: boolean;
  /** Opens a frozen image for writing nevertheless: for `commit`, when nothing else stands on it. */
  readonly evenFrozen?: boolean;
}

export class Qcow2Image implements WritableLayer, Disposable {
  readonly #file: FilePort;
  readonly #header: Header;
  readonly #map: ClusterMap;
  readonly #space: ClusterSpace;
  #dirty: boolean;
  #frozen: boolean;
  readonly #writable: boolean;
  /** Data and tables may change: not so once the image is frozen. */
  #mutable: boolean;
  /** Data was written since the last sync. */
  #unsynced = false;
  #failure: unknown;

  private constructor(file: FilePort, header: Header, space: ClusterSpace, writable: boolean, end: () => number) {
    this.#file = file;
    this.#header = header;
    this.#space = space;
    this.#dirty = header.dirty;
    this.#frozen = header.frozen;
    this.#writable = writable;
    this.#mutable = writable;
    this.#map = new ClusterMap(file, header, end);
  }

  /**
   * A new image in an empty file. Nothing is synced: the first flush makes header, name and content durable together. `seal` it
   * where nothing will flush.
   */
  static create(file: FilePort, byteLength: number, backing: Backing | undefined): Qcow2Image {
    const header = planHeader(byteLength, backing);
    const end = header.l1Cluster + Math.ceil(header.l1Entries * 8 / CLUSTER_BYTES);
    file.truncate(end * CLUSTER_BYTES);
    file.write(encodeHeader(header), 0);
    const countBlocks = new Uint32Array(header.refcountTableClusters * CLUSTER_BYTES / 8);
    const space = new ClusterSpace(file, header, end, countBlocks, []);
    const image = new Qcow2Image(file, header, space, true, () => space.end);
    image.#unsynced = true;
    return image;
  }

  /** Opens; after a crash (dirty bit) an image opened for writing is scanned, and what no flush reached is given back. */
  static open(file: FilePort, options: OpenImageOptions): Qcow2Image {
    const first = new Uint8Array(CLUSTER_BYTES);
    const fileBytes = file.size();
    const header = parseHeader(first.subarray(0, file.read(first, 0)), fileBytes, file.path);
    if (!options.write) {
      const fileClusters = Math.ceil(fileBytes / CLUSTER_BYTES);
      const space = new ClusterSpace(file, header, fileClusters, new Uint32Array(), []);
      return new Qcow2Image(file, header, space, false, () => fileClusters);
    }
    if (header.frozen && !options.evenFrozen) {
      throw new DiskError(`write to image ${file.path}`, "FROZEN", "other images stand on it");
    }
    const found = scan(file, header);
    if (found.corruptions > 0) {
      throw new DiskError(`open image ${file.path}`, "CORRUPT", `${found.corruptions}: ${found.problems.join("; ")}`);
    }
    // Counts of a clean image are trusted as little as those of a dirty one: an image from elsewhere may lie. Only a dirty one
    // is cut, since the counts on the disk of a clean one still speak of its tail.
    if (header.dirty && found.end < found.fileClusters) file.truncate(found.end * CLUSTER_BYTES);
    const end = header.dirty ? found.end : found.fileClusters;
    const space = new ClusterSpace(file, header, end, found.countBlocks, unusedClusters(found.used, end));
    return new Qcow2Image(file, header, space, true, () => space.end);
  }

  get path(): string {
    return this.#file.path;
  }
  get byteLength(): number {
    return this.#header.byteLength;
  }
  get backing(): Backing | undefined {
    return this.#header.backing;
  }
  get frozen(): boolean {
    return this.#frozen;
  }
  /** The reference counts on the disk are not written yet. */
  get dirty(): boolean {
    return this.#dirty;
  }
  /** Bytes of the file. */
  get fileBytes(): number {
    return this.#file.size();
  }
  /** The image holds no block of its own. */
  get isEmpty(): boolean {
    return this.#map.isEmpty;
  }

  locate(block: number): number {
    return this.#map.lookup(block);
  }

  readAt(position: number, within: number, into: Uint8Array): void {
    // A cluster at the file's end may be written in part only: the rest was never written, and is zeros.
    const got = this.#file.read(into, position * CLUSTER_BYTES + within);
    into.fill(0, got);
  }

  place(count: number): { readonly position: number; readonly count: number } {
    this.#unseal();
    return this.#space.take(count);
  }

  giveBack(position: number, count: number): void {
    this.#space.giveBack(position, count);
  }

  writeAt(position: number, within: number, bytes: Uint8Array): void {
    this.#checkMutable();
    this.#unsynced = true;
    this.#file.write(bytes, position * CLUSTER_BYTES + within);
  }

  map(block: number, position: number, count: number): void {
    this.#checkMutable();
    for (let at = 0; at < count; at++) {
      this.#map.set(block + at, position + at, () => this.#space.take(1).position);
    }
    if (this.#map.mustFlush) this.flush();
  }

  zero(block: number, count: number): void {
    this.#unseal();
    for (let at = block; at < block + count; at++) {
      const old = this.#map.lookup(at);
      if (old === ZERO) continue;
      this.#map.set(at, ZERO, () => this.#space.take(1).position);
      if (old >= FIRST_POSITION) this.#space.release(old);
    }
    if (this.#map.mustFlush) this.flush();
  }

  flush(): void {
    this.#checkWritable();
    if (!this.#unsynced && !this.#map.hasChanges) return;
    this.#guarded(() => {
      this.#map.writeFresh();
      this.#file.sync();
      if (this.#map.hasChanges) {
        this.#map.writeLinks();
        this.#file.sync();
      }
    });
    this.#map.settle();
    this.#space.settle();
    this.#unsynced = false;
  }

  /** Flushes, writes the reference counts and clears the dirty bit: the file is then whole for every qcow2 tool. */
  seal(): void {
    this.flush();
    if (!this.#dirty) return;
    this.#guarded(() => {
      this.#space.writeCounts();
      this.#file.sync();
      this.#writeDirtyBit(false);
      this.#file.sync();
    });
    this.#dirty = false;
  }

  /** Writes the reference counts of an image that may say that it is clean, for `check`. */
  rewriteCounts(): void {
    this.#guarded(() => {
      this.#writeDirtyBit(true);
      this.#file.sync();
    });
    this.#dirty = true;
    this.seal();
  }

  /** Other images are about to stand on this one: flushed, and read-only from now on, for other processes too. `seal` still works. */
  freeze(): void {
    this.flush();
    this.#guarded(() => this.#writeFrozen(true));
    this.#unsynced = true;
    this.#mutable = false;
    this.#file.share();
  }

  /** Nothing stands on it any more. */
  unfreeze(): void {
    this.#guarded(() => this.#writeFrozen(false));
    this.#unsynced = true;
    this.flush();
  }

  /** What it holds is of no use any more: closing it writes nothing. */
  discard(): void {
    this.#failure ??= "it was discarded";
  }

  /** Closes the file as it is, with nothing synced: for an image that the next to open it may find as after a crash. */
  abandon(): void {
    this.#file[Symbol.dispose]();
  }

  /** Seals what was open for writing, as far as it did not fail, and closes the file. */
  [Symbol.dispose](): void {
    try {
      if (this.#writable && this.#failure === undefined && (this.#dirty || this.#unsynced)) this.seal();
    } finally {
      this.#file[Symbol.dispose]();
    }
  }

  #unseal(): void {
    this.#checkMutable();
    if (this.#dirty) return;
    this.#guarded(() => {
      this.#writeDirtyBit(true);
      this.#file.sync();
    });
    this.#dirty = true;
  }

  #writeDirtyBit(dirty: boolean): void {
    // The least significant byte of the big-endian field.
    this.#file.write(Uint8Array.of(dirty ? 1 : 0), INCOMPATIBLE_OFFSET + 7);
  }

  #writeFrozen(frozen: boolean): void {
    this.#file.write(Uint8Array.of(0, 0, 0, frozen ? 1 : 0), FROZEN_OFFSET);
    this.#frozen = frozen;
  }

  #checkWritable(): void {
    if (this.#failure !== undefined) {
      throw new DiskError(`write to image ${this.path}`, "FAILED", "an earlier flush failed", { cause: this.#failure });
    }
    if (!this.#writable) throw new DiskError(`write to image ${this.path}`, "FROZEN", "it is open for reading");
  }

  #checkMutable(): void {
    this.#checkWritable();
    if (!this.#mutable) throw new DiskError(`write to image ${this.path}`, "FROZEN", "other images stand on it");
  }

  /** After a failed sync nobody knows what is on the disk, and the kernel reports it once: the image takes no writes any more. */
  #guarded(step: () => void): void {
    try {
      step();
    } catch (cause) {
      this.#failure = cause;
      throw cause;
    }
  }
}
