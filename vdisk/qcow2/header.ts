/**
 * The qcow2 header, version 3 (QEMU's docs/interop/qcow2.txt), in the subset that this program writes: 4 KiB clusters, 16-bit
 * reference counts, no encryption, compression, snapshots or external data. All fields are big-endian.
 */
import { DiskError } from "../errors.ts";

export const CLUSTER_BYTES = 4096;
const CLUSTER_BITS = 12;
const MAGIC = 0x5146_49fb;
const HEADER_BYTES = 112;
const REFCOUNT_ORDER = 4;
/** 4 TiB: the L1 table then has 16 MiB, half of what QEMU accepts. */
export const MAX_DISK_BYTES = 2 ** 42;
/** Cluster numbers are kept in 32 bits. */
const MAX_CLUSTERS = 2 ** 32;
export const L2_ENTRIES = CLUSTER_BYTES / 8;
export const REFCOUNTS_PER_BLOCK = CLUSTER_BYTES / 2;
/** QEMU's own limit for a backing file's name. */
const MAX_BACKING_NAME_BYTES = 1023;

const INCOMPATIBLE_DIRTY = 1n;
const INCOMPATIBLE_CORRUPT = 2n;
const COMPATIBLE_LAZY_REFCOUNTS = 1n;
export const INCOMPATIBLE_OFFSET = 72;

const EXTENSION_END = 0;
const EXTENSION_BACKING_FORMAT = 0xe279_2aca;
/** "SNFW", ours: a u32 that is 1 once other images stand on this one. QEMU keeps extensions that it does not know. */
const EXTENSION_FROZEN = 0x534e_4657;
/** The extension comes first, so that its flag stays in the header's first sector and is written whole. */
export const FROZEN_OFFSET = HEADER_BYTES + 8;

export type BackingFormat = "raw" | "qcow2";

export interface Backing {
  /** As written in the image: absolute, or relative to the image's directory. */
  readonly name: string;
  readonly format: BackingFormat;
}

export interface Header {
  readonly byteLength: number;
  readonly backing: Backing | undefined;
  /** The reference counts may be wrong: the image was not closed. */
  readonly dirty: boolean;
  readonly frozen: boolean;
  readonly l1Cluster: number;
  readonly l1Entries: number;
  readonly refcountTableCluster: number;
  readonly refcountTableClusters: number;
}

/** Where everything starts in a new image. */
export function planHeader(byteLength: number, backing: Backing | undefined): Header {
  const fault = (detail: string) => new DiskError("plan an image", "INVALID", detail);
  if (!Number.isInteger(byteLength) || byteLength <= 0 || byteLength > MAX_DISK_BYTES || byteLength % 512 !== 0) {
    throw fault(`a disk has a multiple of 512 and at most ${MAX_DISK_BYTES} bytes, not ${byteLength}`);
  }
  const dataClusters = Math.ceil(byteLength / CLUSTER_BYTES);
  const l1Entries = Math.ceil(dataClusters / L2_ENTRIES);
  const l1Clusters = Math.ceil(l1Entries * 8 / CLUSTER_BYTES);
  // A quarter more than a full disk needs: clusters wait for reuse, and some may leak.
  const fileClusters = Math.ceil((dataClusters + l1Entries + l1Clusters) * 1.25) + 64;
  const refcountBlocks = Math.ceil(fileClusters / REFCOUNTS_PER_BLOCK) + 1;
  const refcountTableClusters = Math.ceil(refcountBlocks * 8 / CLUSTER_BYTES);
  return {
    byteLength,
    backing,
    dirty: true,
    frozen: false,
    refcountTableCluster: 1,
    refcountTableClusters,
    l1Cluster: 1 + refcountTableClusters,
    l1Entries,
  };
}

/** The image's first cluster. */
export function encodeHeader(header: Header): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(CLUSTER_BYTES);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, MAGIC);
  view.setUint32(4, 3);
  view.setUint32(20, CLUSTER_BITS);
  view.setBigUint64(24, BigInt(header.byteLength));
  view.setUint32(36, header.l1Entries);
  view.setBigUint64(40, BigInt(header.l1Cluster * CLUSTER_BYTES));
  view.setBigUint64(48, BigInt(header.refcountTableCluster * CLUSTER_BYTES));
  view.setUint32(56, header.refcountTableClusters);
  view.setBigUint64(INCOMPATIBLE_OFFSET, header.dirty ? INCOMPATIBLE_DIRTY : 0n);
  view.setBigUint64(80, COMPATIBLE_LAZY_REFCOUNTS);
  view.setUint32(96, REFCOUNT_ORDER);
  view.setUint32(100, HEADER_BYTES);
  let at = HEADER_BYTES;
  const extension = (type: number, content: Uint8Array) => {
    view.setUint32(at, type);
    view.setUint32(at + 4, content.byteLength);
    bytes.set(content, at + 8);
    at += 8 + Math.ceil(content.byteLength / 8) * 8;
  };
  const encoder = new TextEncoder();
  extension(EXTENSION_FROZEN, Uint8Array.of(0, 0, 0, header.frozen ? 1 : 0));
  if (header.backing !== undefined) extension(EXTENSION_BACKING_FORMAT, encoder.encode(header.backing.format));
  extension(EXTENSION_END, new Uint8Array());
  if (header.backing !== undefined) {
    const name = encoder.encode(header.backing.name);
    if (name.byteLength === 0 || name.byteLength > MAX_BACKING_NAME_BYTES) {
      throw new DiskError("write an image's header", "INVALID", "a backing file's name has 1 to 1023 bytes");
    }
    view.setBigUint64(8, BigInt(at));
    view.setUint32(16, name.byteLength);
    bytes.set(name, at);
  }
  return bytes;
}

/** `bytes` are the file's first cluster, or what there is of it. Throws a DiskError for whatever is not a sound image of the subset. */
export function parseHeader(bytes: Uint8Array, fileBytes: number, path: string): Header {
  const fault = (code: "CORRUPT" | "UNSUPPORTED", detail: string) => new DiskError(`open image ${path}`, code, detail);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (bytes.byteLength < HEADER_BYTES || view.getUint32(0) !== MAGIC) throw fault("CORRUPT", "it is no qcow2 image");
  const unsupported = (what: string, value: number | bigint, wanted: number) => {
    if (Number(value) !== wanted) throw fault("UNSUPPORTED", `${what} is ${value}, not ${wanted}`);
  };
  unsupported("the version", view.getUint32(4), 3);
  unsupported("cluster_bits", view.getUint32(20), CLUSTER_BITS);
  unsupported("crypt_method", view.getUint32(32), 0);
  unsupported("nb_snapshots", view.getUint32(60), 0);
  unsupported("refcount_order", view.getUint32(96), REFCOUNT_ORDER);
  const incompatible = view.getBigUint64(INCOMPATIBLE_OFFSET);
  if ((incompatible & INCOMPATIBLE_CORRUPT) !== 0n) throw fault("CORRUPT", "it is marked as corrupt");
  unsupported("incompatible_features", incompatible & ~INCOMPATIBLE_DIRTY, 0);
  const headerBytes = view.getUint32(100);
  if (headerBytes < 104 || headerBytes % 8 !== 0 || headerBytes > 1024) throw fault("CORRUPT", "header_length");

  const size = view.getBigUint64(24);
  if (size === 0n || size > BigInt(MAX_DISK_BYTES) || size % 512n !== 0n) {
    throw fault("UNSUPPORTED", `a disk of ${size} bytes`);
  }
  const byteLength = Number(size);
  const fileClusters = Math.ceil(fileBytes / CLUSTER_BYTES);
  if (fileClusters > MAX_CLUSTERS) throw fault("UNSUPPORTED", `a file of ${fileBytes} bytes`);
  /** A table's first cluster, checked to lie in the file with all of the table. */
  const table = (name: string, offset: bigint, clusters: number): number => {
    const cluster = offset / BigInt(CLUSTER_BYTES);
    if (offset % BigInt(CLUSTER_BYTES) !== 0n || cluster === 0n || cluster + BigInt(clusters) > BigInt(fileClusters)) {
      throw fault("CORRUPT", `the ${name} lies outside the file`);
    }
    return Number(cluster);
  };
  const l1Entries = view.getUint32(36);
  const needed = Math.ceil(byteLength / CLUSTER_BYTES / L2_ENTRIES);
  if (l1Entries < needed || l1Entries > needed + L2_ENTRIES) {
    throw fault("CORRUPT", `an L1 table of ${l1Entries} entries`);
  }
  const l1Cluster = table("L1 table", view.getBigUint64(40), Math.ceil(l1Entries * 8 / CLUSTER_BYTES));
  const refcountTableClusters = view.getUint32(56);
  if (refcountTableClusters === 0 || refcountTableClusters > 2048) {
    throw fault("CORRUPT", `a refcount table of ${refcountTableClusters} clusters`);
  }
  const refcountTableCluster = table("refcount table", view.getBigUint64(48), refcountTableClusters);
  const { frozen, format } = parseExtensions(bytes, headerBytes, path);
  const name = parseBackingName(bytes, path);
  if (name !== undefined && format === undefined) {
    // Guessing the format from the content would let a guest with a raw disk choose its backing file.
    throw fault("UNSUPPORTED", "a backing file without a named format");
  }
  return {
    byteLength,
    backing: name === undefined || format === undefined ? undefined : { name, format },
    dirty: (incompatible & INCOMPATIBLE_DIRTY) !== 0n,
    frozen,
    l1Cluster,
    l1Entries,
    refcountTableCluster,
    refcountTableClusters,
  };
}

function parseExtensions(bytes: Uint8Array, start: number, path: string) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  let frozen = false;
  let format: BackingFormat | undefined;
  for (let at = start; at + 8 <= bytes.byteLength;) {
    const type = view.getUint32(at);
    const length = view.getUint32(at + 4);
    if (type === EXTENSION_END) return { frozen, format };
    if (at + 8 + length > bytes.byteLength) break;
    if (type === EXTENSION_FROZEN && at + 8 === FROZEN_OFFSET && length === 4) frozen = view.getUint32(at + 8) !== 0;
    if (type === EXTENSION_BACKING_FORMAT) {
      const name = new TextDecoder().decode(bytes.subarray(at + 8, at + 8 + length));
      if (name !== "raw" && name !== "qcow2") {
        throw new DiskError(`open image ${path}`, "UNSUPPORTED", `a backing file of format ${JSON.stringify(name)}`);
      }
      format = name;
    }
    at += 8 + Math.ceil(length / 8) * 8;
  }
  throw new DiskError(`open image ${path}`, "CORRUPT", "the header extensions do not end");
}

function parseBackingName(bytes: Uint8Array, path: string): string | undefined {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const offset = view.getBigUint64(8);
  const length = view.getUint32(16);
  if (offset === 0n) return undefined;
  const fault = (detail: string) => new DiskError(`open image ${path}`, "CORRUPT", detail);
  if (length === 0 || length > MAX_BACKING_NAME_BYTES || offset + BigInt(length) > BigInt(bytes.byteLength)) {
    throw fault("the backing file's name lies outside the header");
  }
  const start = Number(offset);
  let name: string;
  try {
    name = new TextDecoder("utf-8", { fatal: true }).decode(bytes.subarray(start, start + length));
  } catch (cause) {
    throw new DiskError(`open image ${path}`, "CORRUPT", "the backing file's name is not UTF-8", { cause });
  }
  if (name.includes("\0")) throw fault("the backing file's name has a NUL");
  return name;
}
