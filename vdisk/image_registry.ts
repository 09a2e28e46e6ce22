/** The layers that this process has open, each once however many disks stand on it, and the chains made of them. */
import { Chain } from "./chain.ts";
import { DiskError } from "./errors.ts";
import { type ImageName, type ImagePaths, opened } from "./image_paths.ts";
import type { BlockSource } from "./ports.ts";
import { Qcow2Image } from "./qcow2/image.ts";
import type { Backing } from "./qcow2/header.ts";
import { RawLayer } from "./raw_layer.ts";
import { remoteBackingName, remoteChainId, RemoteLayer } from "./remote_layer.ts";

/** Every fork of a disk adds a layer; at the limit forks are refused until layers are committed. */
export const MAX_LAYERS = 64;

type AnyLayer = Qcow2Image | RawLayer | RemoteLayer;

interface Entry {
  readonly realPath: string;
  readonly layer: AnyLayer;
  users: number;
  /** The top of one disk. */
  writable: boolean;
}

export interface OpenOptions {
  readonly write: boolean;
  /** Gives the source of the other host's chain with this id; asked once for a cache, when its first user opens it. */
  readonly source?: (chainId: string) => BlockSource | undefined;
}

/** Where a fork's new overlays go. Nothing may be there yet. */
export interface ForkPaths {
  readonly parent: string;
  readonly clones: readonly string[];
}

/** Real paths. To be recorded durably before the parent goes on. */
export interface ForkedPaths {
  /** What the new overlays stand on, and its format. */
  readonly frozen: ImageName;
  /** The parent's overlay from now on: the old one, if nothing was written to it since it was made. */
  readonly parent: string;
  readonly clones: readonly string[];
}

export class ImageRegistry {
  readonly paths: ImagePaths;
  readonly #entries = new Map<string, Entry>();
  readonly #unsealed = new Set<Qcow2Image>();

  constructor(paths: ImagePaths) {
    this.paths = paths;
  }

  open(image: ImageName, options: OpenOptions): OpenDisk {
    const held: Entry[] = [];
    try {
      let next: ImageName | undefined = { path: this.paths.resolve(image.path), format: image.format };
      while (next !== undefined) {
        const path: string = next.path;
        if (held.some((entry) => entry.realPath === path)) {
          throw new DiskError(`open disk ${image.path}`, "CYCLE", `${path} stands on itself`);
        }
        if (held.length === MAX_LAYERS) {
          throw new DiskError(`open disk ${image.path}`, "TOO_LONG", `it has over ${MAX_LAYERS} layers`);
        }
        const entry = this.#acquire(next, { ...options, write: options.write && held.length === 0 });
        held.push(entry);
        const backing: Backing | undefined = entry.layer instanceof Qcow2Image ? entry.layer.backing : undefined;
        next = backing && { path: this.paths.resolveBacking(path, backing.name), format: backing.format };
      }
      return new OpenDisk(this, held, options.write);
    } catch (error) {
      for (const entry of held) this.release(entry);
      throw error;
    }
  }

  /** A fresh overlay, left dirty and unsynced (see {@link Qcow2Image.create}). Its real path. */
  createOverlay(path: string, byteLength: number, backing: ImageName): { realPath: string; image: Qcow2Image } {
    const realPath = this.paths.resolveNew(path);
    const file = this.paths.files.create(realPath);
    try {
      const image = Qcow2Image.create(file, byteLength, { name: backing.path, format: backing.format });
      return { realPath, image };
    } catch (error) {
      file[Symbol.dispose]();
      this.paths.files.remove(realPath);
      throw error;
    }
  }

  /** A cache for the chain `chainId` of another host. Overlays are then made on it as on any image. */
  createRemoteCache(path: string, byteLength: number, chainId: string): string {
    const realPath = this.paths.resolveNew(path);
    using image = Qcow2Image.create(this.paths.files.create(realPath), byteLength, {
      name: remoteBackingName(chainId),
      format: "raw",
    });
    image.flush();
    return realPath;
  }

  adopt(realPath: string, layer: Qcow2Image): Entry {
    const entry = { realPath, layer, users: 1, writable: true };
    this.#entries.set(realPath, entry);
    return entry;
  }

  /** To be sealed when there is time. */
  sealLater(layer: AnyLayer): void {
    if (layer instanceof Qcow2Image) this.#unsealed.add(layer);
  }

  /** Seals one frozen image. Whether there are more. */
  sealOne(): boolean {
    for (const image of this.#unsealed) {
      this.#unsealed.delete(image);
      image.seal();
      break;
    }
    return this.#unsealed.size > 0;
  }

  /** The last user closes the file. */
  release(entry: Entry): void {
    if (--entry.users > 0) return;
    this.#entries.delete(entry.realPath);
    if (entry.layer instanceof Qcow2Image) this.#unsealed.delete(entry.layer);
    entry.layer[Symbol.dispose]();
  }

  #acquire(image: ImageName, options: OpenOptions): Entry {
    const open = this.#entries.get(image.path);
    if (open !== undefined) {
      if (options.write || open.writable) {
        throw new DiskError(`open image ${image.path}`, "BUSY", "another disk writes to it");
      }
      open.users++;
      return open;
    }
    const layer = this.#openLayer(image, options);
    const entry = { realPath: image.path, layer, users: 1, writable: options.write };
    this.#entries.set(image.path, entry);
    return entry;
  }

  #openLayer({ path, format }: ImageName, { write, source }: OpenOptions): AnyLayer {
    const { files } = this.paths;
    if (format === "raw") {
      return opened(files.open(path, write ? "write" : "read"), (file) => new RawLayer(file, { write }));
    }
    const backing = this.paths.readHeader(path).backing;
    const chainId = backing && remoteChainId(backing.name);
    if (chainId === undefined) {
      return opened(files.open(path, write ? "write" : "read"), (file) => Qcow2Image.open(file, { write }));
    }
    if (write) throw new DiskError(`open image ${path}`, "FROZEN", "it is the cache of another host's disk");
    const blocks = source?.(chainId);
    if (blocks === undefined) {
      throw new DiskError(`open image ${path}`, "NO_SOURCE", `nothing gives the blocks of ${JSON.stringify(chainId)}`);
    }
    const cache = opened(files.open(path, "write"), (file) => Qcow2Image.open(file, { write: true }));
    return new RemoteLayer(cache, blocks);
  }
}

export class OpenDisk implements Disposable {
  readonly chain: Chain;
  readonly #registry: ImageRegistry;
  /** Top first. */
  #entries: Entry[];

  constructor(registry: ImageRegistry, entries: Entry[], write: boolean) {
    this.#registry = registry;
    this.#entries = entries;
    const [top, ...below] = entries.map((entry) => entry.layer);
    if (top === undefined) throw new DiskError("open a disk", "INVALID", "it has no layer");
    this.chain = write && !(top instanceof RemoteLayer) ? new Chain(top, below) : new Chain(undefined, [top, ...below]);
  }

  /** The layer whose blocks may have to be fetched. At most one: it is always the last. */
  get remote(): RemoteLayer | undefined {
    const last = this.#entries.at(-1)?.layer;
    return last instanceof RemoteLayer ? last : undefined;
  }

  get layerPaths(): string[] {
    return this.#entries.map((entry) => entry.realPath);
  }

  /**
   * Freezes the top, which must be idle and flushed, and puts fresh overlays on it: the parent's, in place and durable, and the
   * clones', which are not.
   */
  fork(paths: ForkPaths): ForkedPaths {
    const top = this.#entries[0];
    if (top === undefined || !this.chain.writable || top.layer instanceof RemoteLayer) {
      throw new DiskError("fork a disk", "FROZEN", "it is read-only");
    }
    const below = this.#entries[1];
    // Without a write since the last fork a further layer would hold nothing.
    const reuse = top.layer instanceof Qcow2Image && top.layer.isEmpty && below !== undefined;
    const frozen = imageName(reuse ? below : top);
    if (!reuse && this.#entries.length >= MAX_LAYERS) {
      throw new DiskError(`fork disk ${top.realPath}`, "TOO_LONG", `it has ${MAX_LAYERS} layers: commit some`);
    }
    const made: { realPath: string; image: Qcow2Image }[] = [];
    const make = (path: string) => {
      const overlay = this.#registry.createOverlay(path, this.chain.byteLength, frozen);
      made.push(overlay);
      return overlay;
    };
    try {
      const clones = paths.clones.map((path) => make(path).realPath);
      const parent = reuse ? undefined : make(paths.parent);
      if (parent !== undefined) {
        // The parent's only: a clone does not outlive this host's crash.
        parent.image.flush();
        top.layer.freeze();
        top.writable = false;
        this.#registry.sealLater(top.layer);
        this.chain.push(parent.image);
        this.#entries.unshift(this.#registry.adopt(parent.realPath, parent.image));
      }
      for (const { image } of made) if (image !== parent?.image) image.abandon();
      return { frozen, parent: parent?.realPath ?? top.realPath, clones };
    } catch (error) {
      for (const { realPath, image } of made) {
        image.abandon();
        this.#registry.paths.files.remove(realPath);
      }
      throw error;
    }
  }

  /** Closes the disk and deletes its top, unless another image has come to stand on it. */
  closeAndRemoveTop(): void {
    const [top] = this.#entries;
    const { paths } = this.#registry;
    try {
      if (top === undefined) return;
      const others = paths.standingOn(top.realPath);
      if (others.length > 0) {
        throw new DiskError(
          `remove ${top.realPath}`,
          "BUSY",
          `${others.length} images stand on it, such as ${others[0]}`,
        );
      }
      // Before the close, which then has no reference counts to write for nothing.
      paths.files.remove(top.realPath);
      if (top.layer instanceof Qcow2Image) top.layer.discard();
    } finally {
      this[Symbol.dispose]();
    }
  }

  [Symbol.dispose](): void {
    const entries = this.#entries;
    this.#entries = [];
    for (const entry of entries) this.#registry.release(entry);
  }
}

function imageName(entry: Entry): ImageName {
  return { path: entry.realPath, format: entry.layer instanceof RawLayer ? "raw" : "qcow2" };
}
