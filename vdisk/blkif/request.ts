/** A request as the guest wrote it, checked. Nothing in it is trusted before. */
import { SECTOR_BYTES } from "../ports.ts";
import {
  DiscardRequest,
  IndirectRequest,
  MAX_DIRECT_SEGMENTS,
  MAX_INDIRECT_SEGMENTS,
  OP_DISCARD,
  OP_FLUSH_DISKCACHE,
  OP_INDIRECT,
  OP_READ,
  OP_WRITE,
  Request,
  type ResponseStatus,
  RSP_EOPNOTSUPP,
  RSP_ERROR,
  Segment,
} from "./abi.ts";

const SECTORS_PER_PAGE = 8;

export type RequestKind = "read" | "write" | "flush" | "discard" | "refused";

export interface DiskLimits {
  readonly sectors: number;
  readonly writable: boolean;
}

export class DiskRequest {
  readonly id: bigint;
  /** As the response repeats it. */
  readonly operation: number;
  kind: RequestKind;
  /** The answer, once it is known. */
  status: ResponseStatus | undefined;
  /** Why it was refused. */
  reason: string | undefined;
  sector = 0;
  /** Of a discard; else the sum of the segments. */
  sectors = 0;
  segments = 0;
  /** The guest's grants, a segment each, with the sectors of the page that it uses. */
  refs: Uint32Array;
  firsts: Uint8Array;
  lasts: Uint8Array;
  /** The page that lists the segments, where they are not in the request itself. */
  indirectRef: number | undefined;
  /** Where its data is in the staging memory while it is executed. */
  stagingOffset = 0;

  /** `slot` is a copy of the ring's slot. */
  constructor(slot: Uint8Array) {
    const view = new DataView(slot.buffer, slot.byteOffset, slot.byteLength);
    const code = view.getUint8(Request.offsets.operation);
    this.operation = code;
    this.id = view.getBigUint64(Request.offsets.id, true);
    this.refs = NO_REFS;
    this.firsts = NO_BYTES;
    this.lasts = NO_BYTES;
    this.kind = "refused";
    if (code === OP_READ || code === OP_WRITE || code === OP_FLUSH_DISKCACHE) {
      this.#parseDirect(view, code);
    } else if (code === OP_INDIRECT) {
      this.#parseIndirect(view);
    } else if (code === OP_DISCARD) {
      this.kind = "discard";
      this.sector = sectorAt(view, DiscardRequest.offsets.sector_number);
      this.sectors = sectorAt(view, DiscardRequest.offsets.nr_sectors);
    } else {
      this.refuse(RSP_EOPNOTSUPP, `operation ${code}`);
    }
  }

  get byteOffset(): number {
    return this.sector * SECTOR_BYTES;
  }
  get byteLength(): number {
    return this.sectors * SECTOR_BYTES;
  }
  /** Bytes of staging memory that it may need at most: known before its segments are. */
  get maxBytes(): number {
    return this.segments * SECTORS_PER_PAGE * SECTOR_BYTES;
  }

  refuse(status: ResponseStatus, reason: string): void {
    this.kind = "refused";
    this.status = status;
    this.reason = reason;
    this.segments = 0;
  }

  /** Takes the segments from the bytes of the page that lists them. */
  takeSegments(bytes: Uint8Array): void {
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    this.refs = new Uint32Array(this.segments);
    this.firsts = new Uint8Array(this.segments);
    this.lasts = new Uint8Array(this.segments);
    for (let index = 0; index < this.segments; index++) {
      const at = index * Segment.size;
      const first = view.getUint8(at + Segment.offsets.first_sect);
      const last = view.getUint8(at + Segment.offsets.last_sect);
      if (first > last || last >= SECTORS_PER_PAGE) {
        this.refuse(RSP_ERROR, `segment ${index} has sectors ${first} to ${last} of a page`);
        return;
      }
      this.refs[index] = view.getUint32(at + Segment.offsets.gref, true);
      this.firsts[index] = first;
      this.lasts[index] = last;
      this.sectors += last - first + 1;
    }
  }

  /** Refuses what the disk cannot do. After the segments are known. */
  check(disk: DiskLimits): void {
    if (this.kind === "refused") return;
    const empty = this.kind === "flush" && this.segments === 0;
    if (!empty && (this.sectors === 0 || this.sector + this.sectors > disk.sectors)) {
      this.refuse(RSP_ERROR, `${this.sectors} sectors at ${this.sector}, of ${disk.sectors}`);
    } else if (
      !disk.writable && (this.kind === "write" || this.kind === "discard" || !empty && this.kind === "flush")
    ) {
      this.refuse(RSP_ERROR, "the disk is read-only");
    }
  }

  #parseDirect(view: DataView, code: number): void {
    this.kind = code === OP_READ ? "read" : code === OP_WRITE ? "write" : "flush";
    this.segments = view.getUint8(Request.offsets.nr_segments);
    this.sector = sectorAt(view, Request.offsets.sector_number);
    const fewest = this.kind === "flush" ? 0 : 1;
    if (this.segments < fewest || this.segments > MAX_DIRECT_SEGMENTS) {
      this.#refuseSegments();
      return;
    }
    const start = view.byteOffset + Request.offsets.seg;
    this.takeSegments(new Uint8Array(view.buffer, start, this.segments * Segment.size));
  }

  #parseIndirect(view: DataView): void {
    const code = view.getUint8(IndirectRequest.offsets.indirect_op);
    if (code !== OP_READ && code !== OP_WRITE) {
      this.refuse(RSP_EOPNOTSUPP, `indirect operation ${code}`);
      return;
    }
    this.kind = code === OP_READ ? "read" : "write";
    this.segments = view.getUint16(IndirectRequest.offsets.nr_segments, true);
    this.sector = sectorAt(view, IndirectRequest.offsets.sector_number);
    if (this.segments < 1 || this.segments > MAX_INDIRECT_SEGMENTS) {
      this.#refuseSegments();
      return;
    }
    this.indirectRef = view.getUint32(IndirectRequest.offsets.indirect_grefs, true);
  }

  #refuseSegments(): void {
    this.refuse(RSP_ERROR, `${this.segments} segments`);
  }
}

const NO_REFS = new Uint32Array();
const NO_BYTES = new Uint8Array();

/** A 64-bit sector number; Infinity where a number cannot hold it, which no range check passes. */
function sectorAt(view: DataView, offset: number): number {
  const value = view.getUint32(offset + 4, true) * 2 ** 32 + view.getUint32(offset, true);
  return value <= Number.MAX_SAFE_INTEGER ? value : Infinity;
}
