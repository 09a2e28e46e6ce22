/**
 * The VM descriptor: what a host needs to make a clone, except the memory. On the wire and in a file:
 *
 *     "SFVD"  u32 version  u32 header bytes  header (JSON)  blobs, one after the other  SHA-256 of all before
 *
 * Numbers are little-endian. The header names each blob and its length.
 */
import { createHash, timingSafeEqual } from "node:crypto";
import { z } from "zod";
import type { Gfn } from "../../hypercall/ports.ts";
import type { CpuPolicy, TscInfo } from "../../hypercall/xen_api.ts";
import { type DiscoveredMemory, MAX_MAP_RANGES, MemoryMap } from "../memory/memory_map.ts";

export const DESCRIPTOR_VERSION = 1;
/** Largest descriptor that is read. */
export const MAX_DESCRIPTOR_BYTES = 64 << 20;
const MAGIC = 0x44564653;
const DIGEST_BYTES = 32;
const PREFIX_BYTES = 12;
const BLOBS = ["context", "leaves", "msrs", "identPt", "hot", "free"] as const;

/** What a machine is like, as far as a shell for its clones depends on it. Known before the fork. */
export interface GuestShape {
  readonly vcpus: number;
  readonly maxPages: bigint;
  readonly memoryKib: bigint;
  readonly memory: DiscoveredMemory;
  readonly cpuPolicy: CpuPolicy;
  readonly tsc: TscInfo;
  /** Network interfaces: the handle, and the bridge on the parent's host. */
  readonly vifs: readonly { readonly handle: number; readonly bridge: string }[];
}

/** A machine at a fork. */
export interface Descriptor extends GuestShape {
  readonly snapshot: string;
  readonly family: string;
  readonly parentName: string;
  readonly context: Uint8Array;
  /** HVM parameters to set, by number; those that name frames are in `memory.frames`. */
  readonly params: ReadonlyMap<number, bigint>;
  /** The identity page table's page (vCPUs without paging use it); empty where there is none. */
  readonly identPt: Uint8Array;
  /** Pages that must be there before the clone runs, by index. */
  readonly hot: Uint32Array;
  /** Pages that the parent's kernel held free, by index. */
  readonly free: Uint32Array;
}

const Big = z.string().regex(/^\d{1,20}$/).transform(BigInt).refine((value) => value < 1n << 64n);
const Count = z.int().nonnegative();
const Header = z.strictObject({
  snapshot: z.string().regex(/^[\w.-]{1,64}$/),
  family: z.string().regex(/^[\w.-]{1,64}$/),
  parentName: z.string().min(1).max(128),
  vcpus: z.int().min(1).max(512),
  maxPages: Big,
  memoryKib: Big,
  ranges: z.array(z.tuple([Big, Count])).max(MAX_MAP_RANGES),
  frames: z.array(z.tuple([Count.max(63), Big])).max(64),
  params: z.array(z.tuple([Count.max(63), Big])).max(64),
  tsc: z.strictObject({ mode: Count, khz: Count, incarnation: Count, elapsedNs: Big }),
  vifs: z.array(z.strictObject({ handle: Count.max(255), bridge: z.string().regex(/^[\w.-]{0,15}$/) })).max(8),
  blobs: z.strictObject(
    Object.fromEntries(BLOBS.map((name) => [name, Count])) as Record<typeof BLOBS[number], typeof Count>,
  ),
});

/** A descriptor of which only the shape is of use: for a host that makes shells before there is a fork. */
export function shapeOnly(shape: GuestShape, family: string): Descriptor {
  return {
    ...shape,
    snapshot: "none",
    family,
    parentName: "none",
    context: new Uint8Array(),
    params: new Map(),
    identPt: new Uint8Array(),
    hot: new Uint32Array(),
    free: new Uint32Array(),
  };
}

/** Bytes that are no descriptor, or one of another version. */
export class DescriptorError extends Error {
  readonly code = "bad-descriptor";
  constructor(message: string, options?: ErrorOptions) {
    super(`Cannot read the VM descriptor: ${message}`, options);
    this.name = "DescriptorError";
  }
}

export function encodeDescriptor(descriptor: Descriptor): Uint8Array<ArrayBuffer> {
  const blobs: Record<typeof BLOBS[number], Uint8Array> = {
    context: descriptor.context,
    leaves: descriptor.cpuPolicy.leaves,
    msrs: descriptor.cpuPolicy.msrs,
    identPt: descriptor.identPt,
    hot: indexBytes(descriptor.hot),
    free: runBytes(descriptor.free),
  };
  const pairs = <K, V>(map: Iterable<readonly [K, V]>) => [...map].map(([key, value]) => [key, `${value}`]);
  const header = new TextEncoder().encode(JSON.stringify({
    snapshot: descriptor.snapshot,
    family: descriptor.family,
    parentName: descriptor.parentName,
    vcpus: descriptor.vcpus,
    maxPages: `${descriptor.maxPages}`,
    memoryKib: `${descriptor.memoryKib}`,
    ranges: descriptor.memory.map.ranges.map(({ first, pages }) => [`${first}`, pages]),
    frames: pairs(descriptor.memory.frames),
    params: pairs(descriptor.params),
    tsc: { ...descriptor.tsc, elapsedNs: `${descriptor.tsc.elapsedNs}` },
    vifs: descriptor.vifs,
    blobs: Object.fromEntries(BLOBS.map((name) => [name, blobs[name].length])),
  }));
  const bodyBytes = BLOBS.reduce((sum, name) => sum + blobs[name].length, 0);
  const bytes = new Uint8Array(PREFIX_BYTES + header.length + bodyBytes + DIGEST_BYTES);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, MAGIC, true);
  view.setUint32(4, DESCRIPTOR_VERSION, true);
  view.setUint32(8, header.length, true);
  bytes.set(header, PREFIX_BYTES);
  let at = PREFIX_BYTES + header.length;
  for (const name of BLOBS) {
    bytes.set(blobs[name], at);
    at += blobs[name].length;
  }
  bytes.set(createHash("sha256").update(bytes.subarray(0, at)).digest(), at);
  return bytes;
}

/** Throws a {@link DescriptorError}; nothing of a bad descriptor is used. */
export function decodeDescriptor(bytes: Uint8Array): Descriptor {
  if (bytes.length < PREFIX_BYTES + DIGEST_BYTES) throw new DescriptorError("it is cut short");
  if (bytes.length > MAX_DESCRIPTOR_BYTES) throw new DescriptorError("it is too large");
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (view.getUint32(0, true) !== MAGIC) throw new DescriptorError("it does not begin with SFVD");
  const version = view.getUint32(4, true);
  if (version !== DESCRIPTOR_VERSION) {
    throw new DescriptorError(`it has version ${version}; this program reads ${DESCRIPTOR_VERSION}`);
  }
  const body = bytes.subarray(0, bytes.length - DIGEST_BYTES);
  const digest = createHash("sha256").update(body).digest();
  if (!timingSafeEqual(digest, bytes.subarray(body.length))) throw new DescriptorError("its checksum is wrong");
  const headerBytes = view.getUint32(8, true);
  if (PREFIX_BYTES + headerBytes > body.length) throw new DescriptorError("its header is cut short");
  try {
    const text = new TextDecoder("utf-8", { fatal: true }).decode(
      body.subarray(PREFIX_BYTES, PREFIX_BYTES + headerBytes),
    );
    const header = Header.parse(JSON.parse(text));
    let at = PREFIX_BYTES + headerBytes;
    const blob = (name: typeof BLOBS[number]): Uint8Array => {
      const end = at + header.blobs[name];
      if (end > body.length) throw new RangeError(`${name} is cut short`);
      const part = body.slice(at, end);
      at = end;
      return part;
    };
    const blobs = Object.fromEntries(BLOBS.map((name) => [name, blob(name)])) as Record<
      typeof BLOBS[number],
      Uint8Array
    >;
    if (at !== body.length) throw new RangeError("there is more than the header names");
    if (blobs.identPt.length !== 0 && blobs.identPt.length !== 4096) throw new RangeError("identPt is no page");
    const map = new MemoryMap(header.ranges.map(([first, pages]) => ({ first: first as Gfn, pages })));
    return {
      snapshot: header.snapshot,
      family: header.family,
      parentName: header.parentName,
      vcpus: header.vcpus,
      maxPages: header.maxPages,
      memoryKib: header.memoryKib,
      memory: { map, frames: new Map(header.frames.map(([index, gfn]) => [index, gfn as Gfn])) },
      params: new Map(header.params),
      tsc: header.tsc,
      vifs: header.vifs,
      cpuPolicy: { leaves: blobs.leaves, msrs: blobs.msrs },
      context: blobs.context,
      identPt: blobs.identPt,
      hot: readIndexes(blobs.hot, map.pages),
      free: readRuns(blobs.free, map.pages),
    };
  } catch (error) {
    throw new DescriptorError(error instanceof Error ? error.message : String(error), { cause: error });
  }
}

function indexBytes(indexes: Uint32Array): Uint8Array {
  const bytes = new Uint8Array(indexes.length * 4);
  const view = new DataView(bytes.buffer);
  indexes.forEach((index, at) => view.setUint32(at * 4, index, true));
  return bytes;
}

function readIndexes(bytes: Uint8Array, pages: number): Uint32Array {
  if (bytes.length % 4 !== 0) throw new RangeError("a list of pages is cut short");
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  return Uint32Array.from({ length: bytes.length / 4 }, (_, at) => {
    const index = view.getUint32(at * 4, true);
    if (index >= pages) throw new RangeError(`page ${index} is beyond the map`);
    return index;
  });
}

/** Ascending indexes as runs: u32 first, u32 pages. */
function runBytes(indexes: Uint32Array): Uint8Array {
  const runs: number[] = [];
  let end = -1;
  for (const index of indexes) {
    if (index === end) runs[runs.length - 1] = (runs.at(-1) ?? 0) + 1;
    else runs.push(index, 1);
    end = index + 1;
  }
  return indexBytes(Uint32Array.from(runs));
}

function readRuns(bytes: Uint8Array, pages: number): Uint32Array {
  if (bytes.length % 8 !== 0) throw new RangeError("a list of runs is cut short");
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const indexes: number[] = [];
  let end = 0;
  for (let at = 0; at < bytes.length; at += 8) {
    const first = view.getUint32(at, true);
    const count = view.getUint32(at + 4, true);
    if (first < end || count === 0 || first + count > pages) throw new RangeError("a run of pages is out of order");
    for (let index = first; index < first + count; index++) indexes.push(index);
    end = first + count;
  }
  return Uint32Array.from(indexes);
}
