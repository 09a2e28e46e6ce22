/** Guests on bytes: grants, event channels and a block front end, for tests. It implements the machine's ports below the code under test. */
import type {
  Address,
  CopyEnd,
  CopySegment,
  Domid,
  EventChannelPort,
  GrantPort,
  PinnedMemory,
  Port,
} from "../../hypercall/ports.ts";
import {
  DiscardRequest,
  IndirectRequest,
  OP_DISCARD,
  OP_INDIRECT,
  Request,
  Response,
  Segment,
  SharedRing,
  SLOT_BYTES,
  SLOTS,
} from "../blkif/abi.ts";
import { BLOCK_BYTES } from "../ports.ts";

/** GNTST_* (public/grant_table.h). */
export const GNTST_BAD_GNTREF = -3;
export const GNTST_PERMISSION_DENIED = -8;

const STAGING_ADDRESS = 0x7000_0000n as Address;

interface Grant {
  readonly bytes: Uint8Array<ArrayBuffer>;
  readonly readOnly: boolean;
}

export class SimMachine implements GrantPort {
  readonly #grants = new Map<string, Grant>();
  readonly staging: PinnedMemory;
  copyCalls = 0;
  mapped = 0;

  constructor(stagingBytes = 4 * 1024 * 1024) {
    this.staging = { address: STAGING_ADDRESS, bytes: new Uint8Array(stagingBytes), [Symbol.dispose]: () => {} };
  }

  grant(domid: Domid, ref: number, bytes: Uint8Array<ArrayBuffer>, readOnly = false): void {
    this.#grants.set(`${domid}/${ref}`, { bytes, readOnly });
  }

  copy(segments: readonly CopySegment[]): Int16Array {
    this.copyCalls++;
    return Int16Array.from(segments, ({ source, dest, byteLength }) => {
      // The kernel fails the whole call for these: honest callers never make them.
      if (byteLength <= 0 || byteLength > BLOCK_BYTES) throw new Error(`a copy of ${byteLength} bytes`);
      const from = this.#find(source, byteLength, false);
      const to = this.#find(dest, byteLength, true);
      if (typeof from === "number") return from;
      if (typeof to === "number") return to;
      to.set(from);
      return 0;
    });
  }

  map(domid: Domid, refs: readonly number[], { write }: { readonly write: boolean }): PinnedMemory {
    const grant = this.#grants.get(`${domid}/${refs[0]}`);
    if (grant === undefined || refs.length !== 1 || (write && grant.readOnly)) {
      throw new Error(`cannot map grant ${refs}`);
    }
    this.mapped++;
    return { address: 0n as Address, bytes: grant.bytes, [Symbol.dispose]: () => void this.mapped-- };
  }

  [Symbol.dispose](): void {}

  #find(end: CopyEnd, byteLength: number, write: boolean): Uint8Array | number {
    if ("address" in end) {
      const offset = Number(end.address - STAGING_ADDRESS);
      if (offset < 0 || offset + byteLength > this.staging.bytes.byteLength) {
        throw new Error("EFAULT: not the staging memory");
      }
      return this.staging.bytes.subarray(offset, offset + byteLength);
    }
    if (end.offset + byteLength > BLOCK_BYTES) throw new Error("EINVAL: over a page's end");
    const grant = this.#grants.get(`${end.domid}/${end.ref}`);
    if (grant === undefined) return GNTST_BAD_GNTREF;
    if (write && grant.readOnly) return GNTST_PERMISSION_DENIED;
    return grant.bytes.subarray(end.offset, end.offset + byteLength);
  }
}

export class SimEvents implements EventChannelPort {
  readonly fd = 100;
  /** Local port to the guest's. */
  readonly bound = new Map<Port, string>();
  readonly #fired = new Set<Port>();
  readonly #masked = new Set<Port>();
  /** Notifications by the guest's end, `domid/port`. */
  readonly sent = new Map<string, number>();
  #next = 1;

  bindInterdomain(domid: Domid, remotePort: Port): Port {
    const port = this.#next++ as Port;
    this.bound.set(port, `${domid}/${remotePort}`);
    return port;
  }
  bindUnbound(): Port {
    throw new Error("not simulated");
  }
  unbind(port: Port): void {
    if (!this.bound.delete(port)) throw new Error(`port ${port} is not bound`);
    this.#fired.delete(port);
    this.#masked.delete(port);
  }
  notify(port: Port): void {
    const end = this.bound.get(port);
    if (end === undefined) throw new Error(`port ${port} is not bound`);
    this.sent.set(end, (this.sent.get(end) ?? 0) + 1);
  }
  /** The guest notifies. */
  fire(domid: Domid, remotePort: Port): void {
    for (const [port, end] of this.bound) if (end === `${domid}/${remotePort}`) this.#fired.add(port);
  }
  /** Whether the descriptor is readable. */
  get readable(): boolean {
    return [...this.#fired].some((port) => !this.#masked.has(port));
  }
  pending(): Port[] {
    const ports = [...this.#fired].filter((port) => !this.#masked.has(port));
    for (const port of ports) {
      this.#fired.delete(port);
      this.#masked.add(port);
    }
    return ports;
  }
  unmask(port: Port): void {
    this.#masked.delete(port);
  }
  [Symbol.dispose](): void {}
}

export interface SegmentSpec {
  readonly ref: number;
  readonly first: number;
  readonly last: number;
}

/** A front end with a ring page and data pages, grants `ringRef` and 1000 up. */
export class SimFrontend {
  readonly ring: Uint8Array<ArrayBuffer>;
  readonly pages: Uint8Array<ArrayBuffer>[] = [];
  readonly #view: DataView;
  #produced = 0;
  #consumed = 0;
  #nextId = 1n;

  constructor(
    readonly machine: SimMachine,
    readonly domid: Domid,
    readonly ringRef = 8,
    readonly port = 5 as Port,
    pages = 600,
  ) {
    this.ring = new Uint8Array(4096);
    this.#view = new DataView(this.ring.buffer);
    // SHARED_RING_INIT
    this.#view.setUint32(SharedRing.offsets.req_event, 1, true);
    this.#view.setUint32(SharedRing.offsets.rsp_event, 1, true);
    machine.grant(domid, ringRef, this.ring);
    for (let index = 0; index < pages; index++) {
      const bytes = new Uint8Array(4096);
      this.pages.push(bytes);
      machine.grant(domid, SimFrontend.ref(index), bytes);
    }
  }

  static ref(page: number): number {
    return 1000 + page;
  }

  page(index: number): Uint8Array<ArrayBuffer> {
    const page = this.pages[index];
    if (page === undefined) throw new RangeError(`page ${index}`);
    return page;
  }

  /** `count` segments of whole pages from page `first`. */
  static wholePages(first: number, count: number): SegmentSpec[] {
    return Array.from({ length: count }, (_, index) => ({ ref: SimFrontend.ref(first + index), first: 0, last: 7 }));
  }

  /** Puts a request; segments over 11 go through page 599. The id. */
  request(operation: number, sector: bigint, segments: readonly SegmentSpec[]): bigint {
    const id = this.#nextId++;
    const seg = segments.map(({ ref, first, last }) => ({ gref: ref, first_sect: first, last_sect: last }));
    if (segments.length <= 11) {
      this.raw(Request.encode({ operation, nr_segments: segments.length, id, sector_number: sector, seg }));
    } else {
      const list = this.page(599);
      seg.forEach((segment, index) => Segment.encodeInto(segment, list, index * Segment.size));
      this.raw(this.indirect(operation, id, sector, segments.length, SimFrontend.ref(599)));
    }
    return id;
  }

  indirect(operation: number, id: bigint, sector: bigint, segments: number, ref: number): Uint8Array {
    const slot = new Uint8Array(SLOT_BYTES);
    IndirectRequest.encodeInto(
      {
        operation: OP_INDIRECT,
        indirect_op: operation,
        nr_segments: segments,
        id,
        sector_number: sector,
        indirect_grefs: [ref],
      },
      slot,
    );
    return slot;
  }

  discard(sector: bigint, sectors: bigint): bigint {
    const id = this.#nextId++;
    const slot = new Uint8Array(SLOT_BYTES);
    DiscardRequest.encodeInto({ operation: OP_DISCARD, id, sector_number: sector, nr_sectors: sectors }, slot);
    this.raw(slot);
    return id;
  }

  /** Puts any slot's bytes. */
  raw(slot: Uint8Array): void {
    this.ring.set(slot, SharedRing.offsets.ring + (this.#produced & (SLOTS - 1)) * SLOT_BYTES);
    this.#produced = (this.#produced + 1) >>> 0;
    this.produce(this.#produced);
  }

  /** Sets the producer index, to whatever. */
  produce(index: number): void {
    this.#view.setUint32(SharedRing.offsets.req_prod, index, true);
  }

  get responsesProduced(): number {
    return this.#view.getUint32(SharedRing.offsets.rsp_prod, true);
  }

  /** Takes the responses, and asks for an event at the next. */
  responses(): { id: bigint; operation: number; status: number }[] {
    const taken: { id: bigint; operation: number; status: number }[] = [];
    while (this.#consumed !== this.responsesProduced) {
      const offset = SharedRing.offsets.ring + (this.#consumed & (SLOTS - 1)) * SLOT_BYTES;
      const { id, operation, status } = Response.decode(this.ring, offset);
      taken.push({ id, operation, status });
      this.#consumed = (this.#consumed + 1) >>> 0;
    }
    this.#view.setUint32(SharedRing.offsets.rsp_event, (this.#consumed + 1) >>> 0, true);
    return taken;
  }
}
