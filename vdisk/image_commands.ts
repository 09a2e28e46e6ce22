/** `create`, `info`, `check`, `commit` and `rm` of images that no guest uses. All throw a DiskError. */
import { DiskError } from "./errors.ts";
import { type ImageName, type ImagePaths, opened } from "./image_paths.ts";
import { FIRST_POSITION, ZERO } from "./layer.ts";
import { BLOCK_BYTES } from "./ports.ts";
import { type Backing, CLUSTER_BYTES, type Header, parseHeader } from "./qcow2/header.ts";
import { Qcow2Image } from "./qcow2/image.ts";
import { scan } from "./qcow2/scan.ts";
import { MAX_LAYERS } from "./image_registry.ts";
import { RawLayer } from "./raw_layer.ts";
import { remoteChainId } from "./remote_layer.ts";

/** A new image, empty or standing on `backing`, whose size it has then unless told otherwise. */
export function createImage(
  paths: ImagePaths,
  path: string,
  options: { readonly byteLength?: number; readonly backing?: ImageName },
): void {
  const { backing } = options;
  let byteLength = options.byteLength;
  let name: Backing | undefined;
  if (backing !== undefined) {
    const realBacking = paths.resolve(backing.path);
    name = { name: realBacking, format: backing.format };
    byteLength ??= sizeOf(paths, { path: realBacking, format: backing.format });
    // A chain that cannot be opened is found now.
    chainOf(paths, { path: realBacking, format: backing.format }, 1);
  }
  if (byteLength === undefined) {
    throw new DiskError(`create image ${path}`, "INVALID", "it needs a size or a backing file");
  }
  const realPath = paths.resolveNew(path);
  const file = paths.files.create(realPath);
  try {
    using image = Qcow2Image.create(file, byteLength, name);
    image.seal();
  } catch (error) {
    paths.files.remove(realPath);
    throw error;
  }
}

export interface ImageInfo {
  readonly path: string;
  readonly format: "raw" | "qcow2";
  readonly byteLength: number;
  readonly fileBytes: number;
  /** Clusters of data that the image itself holds; for a raw one all. */
  readonly dataBytes: number;
  readonly dirty: boolean;
  readonly frozen: boolean;
  /** The layers below, top first; `remote` names a chain of another host. */
  readonly chain: readonly (ImageName | { readonly remote: string })[];
}

export function imageInfo(paths: ImagePaths, image: ImageName): ImageInfo {
  const path = paths.resolve(image.path);
  const chain = chainOf(paths, { path, format: image.format }, 0).slice(1);
  using file = paths.files.open(path, "peek");
  const fileBytes = file.size();
  if (image.format === "raw") {
    return {
      path,
      format: "raw",
      byteLength: fileBytes,
      fileBytes,
      dataBytes: fileBytes,
      dirty: false,
      frozen: false,
      chain,
    };
  }
  const header = paths.readHeader(path);
  const { dataClusters } = scan(file, header);
  const { byteLength, dirty, frozen } = header;
  return {
    path,
    format: "qcow2",
    byteLength,
    fileBytes,
    dataBytes: dataClusters * CLUSTER_BYTES,
    dirty,
    frozen,
    chain,
  };
}

export interface ImageCheck {
  /** Entries that lose or mix content. */
  readonly corruptions: number;
  /** Clusters whose use no reference count shows; and the other way round. */
  readonly undercounted: number;
  readonly leaks: number;
  readonly dirty: boolean;
  readonly problems: readonly string[];
  /** What `repair` did. */
  readonly droppedEntries: number;
}

/**
 * Checks all tables of a qcow2 image. With `repair` the reference counts are written anew and corrupt entries are dropped: the
 * blocks they stood for read as the backing file has them, which is a loss that the result tells.
 */
export function checkImage(paths: ImagePaths, path: string, options: { readonly repair?: boolean } = {}): ImageCheck {
  const realPath = paths.resolve(path);
  using file = paths.files.open(realPath, options.repair ? "write" : "read");
  const first = new Uint8Array(CLUSTER_BYTES);
  const header: Header = parseHeader(first.subarray(0, file.read(first, 0)), file.size(), realPath);
  const found = scan(file, header);
  const { corruptions, undercounted, leaks, problems } = found;
  const result = { corruptions, undercounted, leaks, dirty: header.dirty, problems };
  if (!options.repair) return { ...result, droppedEntries: 0 };
  for (const offset of found.corruptEntries) file.write(new Uint8Array(8), offset);
  file.sync();
  const image = Qcow2Image.open(file, { write: true, evenFrozen: true });
  image.rewriteCounts();
  return { ...result, droppedEntries: found.corruptEntries.length };
}

/**
 * Merges an image into its backing file and removes it. Refused while a guest uses either, or while other images stand on the
 * backing file. Safe to repeat after a crash. The number of blocks merged.
 */
export function commitImage(paths: ImagePaths, path: string): { readonly backing: ImageName; readonly blocks: number } {
  const realPath = paths.resolve(path);
  const header = paths.readHeader(realPath);
  if (header.backing === undefined || remoteChainId(header.backing.name) !== undefined) {
    throw new DiskError(`commit image ${realPath}`, "INVALID", "it has no backing file on this host");
  }
  const backing = { path: paths.resolveBacking(realPath, header.backing.name), format: header.backing.format };
  refuseIfStoodOn(paths, realPath, "commit", []);
  refuseIfStoodOn(paths, backing.path, "commit into", [realPath]);
  let blocks = 0;
  {
    const openImage = (path: string) =>
      opened(paths.files.open(path, "write"), (file) => Qcow2Image.open(file, { write: true, evenFrozen: true }));
    using top = openImage(realPath);
    using bottom = backing.format === "raw"
      ? opened(paths.files.open(backing.path, "write"), (file) => new RawLayer(file, { write: true }))
      : openImage(backing.path);
    if (bottom.byteLength < top.byteLength) {
      throw new DiskError(`commit image ${realPath}`, "INVALID", "its backing file is smaller");
    }
    blocks = copyBlocks(top, bottom);
    bottom.flush();
    if (bottom instanceof Qcow2Image && bottom.frozen) bottom.unfreeze();
  }
  paths.files.remove(realPath);
  return { backing, blocks };
}

/** Removes an image that no guest uses and no image stands on. */
export function removeImage(paths: ImagePaths, path: string): void {
  const realPath = paths.resolve(path);
  refuseIfStoodOn(paths, realPath, "remove", []);
  using _exclusive = paths.files.open(realPath, "write");
  paths.files.remove(realPath);
}

function copyBlocks(top: Qcow2Image, bottom: RawLayer | Qcow2Image): number {
  const buffer = new Uint8Array(BLOCK_BYTES);
  const blocks = Math.ceil(top.byteLength / BLOCK_BYTES);
  let copied = 0;
  for (let block = 0; block < blocks; block++) {
    const position = top.locate(block);
    if (position === ZERO) bottom.zero(block, 1);
    if (position < FIRST_POSITION) continue;
    const length = Math.min(BLOCK_BYTES, top.byteLength - block * BLOCK_BYTES);
    const bytes = buffer.subarray(0, bottom instanceof RawLayer ? length : BLOCK_BYTES);
    top.readAt(position, 0, bytes);
    const old = bottom.locate(block);
    if (old >= FIRST_POSITION) {
      bottom.writeAt(old, 0, bytes);
    } else {
      const placed = bottom.place(1);
      bottom.writeAt(placed.position, 0, bytes);
      bottom.map(block, placed.position, 1);
    }
    copied++;
  }
  return copied;
}

function refuseIfStoodOn(paths: ImagePaths, realPath: string, verb: string, except: readonly string[]): void {
  const others = paths.standingOn(realPath).filter((other) => !except.includes(other));
  if (others.length > 0) {
    throw new DiskError(`${verb} image ${realPath}`, "BUSY", `${others.length} stand on it, such as ${others[0]}`);
  }
}

function sizeOf(paths: ImagePaths, image: ImageName): number {
  if (image.format === "qcow2") return paths.readHeader(image.path).byteLength;
  using file = paths.files.open(image.path, "peek");
  return Math.floor(file.size() / 512) * 512;
}

/** The image and what it stands on, by the headers alone; `extra` layers will come on top. */
function chainOf(paths: ImagePaths, image: ImageName, extra: number): (ImageName | { readonly remote: string })[] {
  const chain: (ImageName | { readonly remote: string })[] = [];
  const seen = new Set<string>();
  let next: ImageName | undefined = image;
  while (next !== undefined) {
    if (seen.has(next.path)) throw new DiskError(`open disk ${image.path}`, "CYCLE", `${next.path} stands on itself`);
    if (chain.length + extra >= MAX_LAYERS) {
      throw new DiskError(`open disk ${image.path}`, "TOO_LONG", `it has over ${MAX_LAYERS} layers`);
    }
    seen.add(next.path);
    chain.push(next);
    const { backing }: { backing: Backing | undefined } = next.format === "raw"
      ? { backing: undefined }
      : paths.readHeader(next.path);
    const remote: string | undefined = backing && remoteChainId(backing.name);
    if (remote !== undefined) chain.push({ remote });
    next = backing === undefined || remote !== undefined
      ? undefined
      : { path: paths.resolveBacking(next.path, backing.name), format: backing.format };
  }
  return chain;
}
