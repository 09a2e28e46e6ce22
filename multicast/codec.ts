/** Packets to bytes and back. What is read is checked; a packet that breaks a rule is refused whole. */
import type { Packet } from "./ports.ts";
import {
  BLOCK_BYTES,
  Codec,
  fragmentLength,
  HEADER_BYTES,
  MAGIC,
  MAX_BLOCKS,
  MAX_FRAGMENTS,
  MAX_RANGE_BLOCKS,
  MessageType,
  VERSION,
} from "./protocol.ts";

const TWO_32 = 2 ** 32;

export function read48(view: DataView, at: number): number {
  return view.getUint16(at) * TWO_32 + view.getUint32(at + 2);
}

export function write48(view: DataView, at: number, value: number): void {
  view.setUint16(at, Math.floor(value / TWO_32));
  view.setUint32(at + 2, value % TWO_32);
}

/** The clear (authenticated) start of a packet. */
export interface Header {
  type: number;
  family: number;
  sender: number;
  counter: number;
}

/** Writes the header and sets the packet's length to it. */
export function writeHeader(packet: Packet, header: Header): void {
  const { view } = packet;
  view.setUint16(0, MAGIC);
  view.setUint8(2, VERSION);
  view.setUint8(3, header.type);
  write48(view, 4, header.family);
  write48(view, 10, header.sender);
  write48(view, 16, header.counter);
  packet.length = HEADER_BYTES;
}

/** False unless the packet begins like one of this protocol. */
export function readHeader(packet: Packet, into: Header): boolean {
  const { view, length } = packet;
  if (length < HEADER_BYTES || view.getUint16(0) !== MAGIC || view.getUint8(2) !== VERSION) return false;
  into.type = view.getUint8(3);
  into.family = read48(view, 4);
  into.sender = read48(view, 10);
  into.counter = read48(view, 16);
  return into.type >= MessageType.Data && into.type <= MessageType.Gone && into.counter > 0;
}

const OBJECT_AT = HEADER_BYTES;
const SEQUENCE_AT = OBJECT_AT + 16;
const RECORDS_AT = SEQUENCE_AT + 4;
/** Before the bytes of a fragment: index 4, codec 1, fragment 1, fragments 1, encoded length 2. */
export const FRAGMENT_RECORD_BYTES = 9;
/** A run of zero or absent blocks: index 4, codec 1, count 2. */
export const RUN_RECORD_BYTES = 7;
/** Bytes of a data packet before its first record. */
export const DATA_OVERHEAD = RECORDS_AT;

/** Begins a data packet after its header. `sequence` is 0 outside the family's stream. */
export function beginData(packet: Packet, object: Uint8Array, sequence: number): void {
  packet.bytes.set(object, OBJECT_AT);
  packet.view.setUint32(SEQUENCE_AT, sequence);
  packet.length = RECORDS_AT;
}

export function appendRun(packet: Packet, index: number, codec: number, count: number): void {
  const { view, length } = packet;
  view.setUint32(length, index);
  view.setUint8(length + 4, codec);
  view.setUint16(length + 5, count);
  packet.length = length + RUN_RECORD_BYTES;
}

/** Appends fragment `fragment` of `encoded`. */
export function appendFragment(
  packet: Packet,
  index: number,
  codec: number,
  fragment: number,
  fragments: number,
  encoded: Uint8Array,
): void {
  const { view, length } = packet;
  view.setUint32(length, index);
  view.setUint8(length + 4, codec);
  view.setUint8(length + 5, fragment);
  view.setUint8(length + 6, fragments);
  view.setUint16(length + 7, encoded.length);
  const start = fragment * Math.ceil(encoded.length / fragments);
  const count = fragmentLength(encoded.length, fragments, fragment);
  packet.bytes.set(encoded.subarray(start, start + count), length + FRAGMENT_RECORD_BYTES);
  packet.length = length + FRAGMENT_RECORD_BYTES + count;
}

/** Fills up to `length` with zeros, less than a record: packets of one length go through the kernel as one message. */
export function pad(packet: Packet, length: number): void {
  if (length - packet.length >= RUN_RECORD_BYTES || length <= packet.length) return;
  packet.bytes.fill(0, packet.length, length);
  packet.length = length;
}

/** Reads the records of an opened data packet one after the other, without allocating. */
export class DataReader {
  sequence = 0;
  /** The record that {@link next} found. */
  index = 0;
  codec = 0;
  /** Blocks of a run; 1 for a fragment. */
  count = 0;
  fragment = 0;
  fragments = 0;
  encodedLength = 0;
  /** Where the fragment's bytes lie in the packet. */
  start = 0;
  length = 0;
  #packet: Packet | undefined;
  #at = 0;

  /** False for a packet that is malformed anywhere. */
  open(packet: Packet): boolean {
    if (packet.length < RECORDS_AT) return false;
    this.#packet = packet;
    this.sequence = packet.view.getUint32(SEQUENCE_AT);
    this.#at = RECORDS_AT;
    while (packet.length - this.#at >= RUN_RECORD_BYTES) if (!this.#read(packet)) return false;
    this.#at = RECORDS_AT;
    return true;
  }

  next(): boolean {
    return this.#packet !== undefined && this.#packet.length - this.#at >= RUN_RECORD_BYTES &&
      this.#read(this.#packet);
  }

  #read({ view, length }: Packet): boolean {
    const at = this.#at;
    this.index = view.getUint32(at);
    this.codec = view.getUint8(at + 4);
    if (this.codec === Codec.Zero || this.codec === Codec.Absent) {
      this.count = view.getUint16(at + 5);
      this.#at = at + RUN_RECORD_BYTES;
      return this.count > 0 && this.index + this.count <= MAX_BLOCKS;
    }
    if (this.codec > Codec.Zstd || length - at < FRAGMENT_RECORD_BYTES || this.index >= MAX_BLOCKS) return false;
    this.count = 1;
    this.fragment = view.getUint8(at + 5);
    this.fragments = view.getUint8(at + 6);
    this.encodedLength = view.getUint16(at + 7);
    if (this.fragments === 0 || this.fragments > MAX_FRAGMENTS || this.fragment >= this.fragments) return false;
    if (this.encodedLength === 0 || this.encodedLength > BLOCK_BYTES) return false;
    if (this.codec === Codec.Raw && this.encodedLength !== BLOCK_BYTES) return false;
    this.start = at + FRAGMENT_RECORD_BYTES;
    this.length = fragmentLength(this.encodedLength, this.fragments, this.fragment);
    this.#at = this.start + this.length;
    return this.length > 0 && this.#at <= length;
  }
}

const FLAGS_AT = OBJECT_AT + 16;
const HIGHEST_AT = FLAGS_AT + 1;
const RECEIVED_AT = HIGHEST_AT + 4;
const RANGES_AT = RECEIVED_AT + 4;
const RANGE_BYTES = 7;

/** Blocks `index` to `index + count - 1`, of each the fragments in `mask`. */
export interface Range {
  index: number;
  count: number;
  mask: number;
}

/** What a receiver asks, and what it has seen of the server's stream. Without ranges it is a report. */
export interface Request {
  flags: number;
  /** Highest stream sequence seen; 0: none. */
  highest: number;
  /** Packets of the stream received, modulo 2^32. */
  received: number;
  ranges: Range[];
}

/** Ranges that fit into a packet of `payloadBytes`. */
export function rangesPerPacket(payloadBytes: number): number {
  return Math.floor((payloadBytes - RANGES_AT - 16) / RANGE_BYTES);
}

/** Appends ranges `from` to `to - 1` of the request after the header. */
export function writeRequest(packet: Packet, object: Uint8Array, request: Request, from: number, to: number): void {
  const { view } = packet;
  packet.bytes.set(object, OBJECT_AT);
  view.setUint8(FLAGS_AT, request.flags);
  view.setUint32(HIGHEST_AT, request.highest);
  view.setUint32(RECEIVED_AT, request.received);
  let at = RANGES_AT;
  for (let n = from; n < to; n++) {
    const range = request.ranges[n];
    if (range === undefined) break;
    view.setUint32(at, range.index);
    view.setUint16(at + 4, range.count);
    view.setUint8(at + 6, range.mask);
    at += RANGE_BYTES;
  }
  packet.length = at;
}

/** The request of an opened packet; undefined for a malformed one. */
export function readRequest({ view, length }: Packet): Request | undefined {
  if (length < RANGES_AT || (length - RANGES_AT) % RANGE_BYTES !== 0) return undefined;
  const ranges: Range[] = [];
  for (let at = RANGES_AT; at < length; at += RANGE_BYTES) {
    const range = { index: view.getUint32(at), count: view.getUint16(at + 4), mask: view.getUint8(at + 6) };
    if (range.count === 0 || range.count > MAX_RANGE_BLOCKS || range.index + range.count > MAX_BLOCKS) return undefined;
    if (range.mask === 0 || range.mask > 0x7f) return undefined;
    ranges.push(range);
  }
  return {
    flags: view.getUint8(FLAGS_AT),
    highest: view.getUint32(HIGHEST_AT),
    received: view.getUint32(RECEIVED_AT),
    ranges,
  };
}

/** The server's stream ended (for now) at `sequence`. */
export function writeIdle(packet: Packet, sequence: number): void {
  packet.view.setUint32(HEADER_BYTES, sequence);
  packet.length = HEADER_BYTES + 4;
}

export function readIdle({ view, length }: Packet): number | undefined {
  return length === HEADER_BYTES + 4 ? view.getUint32(HEADER_BYTES) : undefined;
}

/** The server does not serve the object. */
export function writeGone(packet: Packet, object: Uint8Array): void {
  packet.bytes.set(object, OBJECT_AT);
  packet.length = OBJECT_AT + 16;
}

/** The first 6 bytes of the object's id; undefined when the packet is too short to hold an id. */
export function readObjectTag({ view, length }: Packet): number | undefined {
  return length < OBJECT_AT + 16 ? undefined : read48(view, OBJECT_AT);
}

/** Whether the packet names this object in all 16 bytes. */
export function namesObject({ view }: Packet, words: Uint32Array): boolean {
  return view.getUint32(OBJECT_AT) === words[0] && view.getUint32(OBJECT_AT + 4) === words[1] &&
    view.getUint32(OBJECT_AT + 8) === words[2] && view.getUint32(OBJECT_AT + 12) === words[3];
}

/** The 16 bytes of the id, in the packet. */
export function objectId({ bytes }: Packet): Uint8Array {
  return bytes.subarray(OBJECT_AT, OBJECT_AT + 16);
}
