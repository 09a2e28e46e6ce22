/** The serving side of a remote disk: reads blocks of a frozen chain for other hosts. */
import { DiskError } from "./errors.ts";
import type { ImageName } from "./image_paths.ts";
import type { ImageRegistry, OpenDisk } from "./image_registry.ts";
import { BLOCK_BYTES, SECTOR_BYTES } from "./ports.ts";
import type { Waiter } from "./remote_layer.ts";

export class FrozenBlocks implements Disposable {
  readonly byteLength: number;
  readonly blocks: number;
  readonly #disk: OpenDisk;

  /** `image` is a fork's `frozen`. Its layers are shared with the disks of the same registry. */
  constructor(registry: ImageRegistry, image: ImageName) {
    this.#disk = registry.open(image, { write: false });
    this.byteLength = this.#disk.chain.byteLength;
    this.blocks = Math.ceil(this.byteLength / BLOCK_BYTES);
  }

  /**
   * The block's 4096 bytes (past the disk's end zeros); "zero" where it is known without reading to hold nothing else; "missing"
   * where it lives on yet another host (the parent is a clone itself): `fetch` it, then read again.
   */
  read(block: number, into: Uint8Array): "data" | "zero" | "missing" {
    if (!Number.isInteger(block) || block < 0 || block >= this.blocks) {
      throw new DiskError("serve a block", "INVALID", `block ${block} of ${this.blocks}`);
    }
    const { chain } = this.#disk;
    if (chain.isHole(block)) {
      into.fill(0, 0, BLOCK_BYTES);
      return "zero";
    }
    const start = block * BLOCK_BYTES;
    if (chain.missing(start, SECTOR_BYTES, "read").length > 0) return "missing";
    const length = Math.min(BLOCK_BYTES, this.byteLength - start);
    into.fill(0, length, BLOCK_BYTES);
    chain.read(into.subarray(0, length), start);
    return "data";
  }

  /** Fetches a block that is missing; the service that polls the chain's source calls `waiter`. */
  fetch(block: number, waiter: Waiter): void {
    const { remote } = this.#disk;
    if (remote === undefined) throw new DiskError("fetch a block", "NO_SOURCE", "the chain is of this host");
    remote.fetch([block], waiter);
  }

  [Symbol.dispose](): void {
    this.#disk[Symbol.dispose]();
  }
}
