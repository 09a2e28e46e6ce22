/**
 * This program's end of a domain's paging ring (public/vm_event.h, public/io/ring.h): Xen puts requests, this end answers them. It
 * works on the ring's page as mapped here. Requests and answers share 8 slots, so each request must be answered once, after its page is in.
 *
 * The page is taken from the guest once the ring is enabled, yet nothing in it is trusted: each field is read once, and a producer
 * index that Xen cannot have written ends the ring with a {@link RingError}.
 */
import {
  MEM_PAGING,
  RING_ENTRIES,
  RING_HEADER_BYTES,
  RingHeader,
  VM_EVENT_FLAG,
  VM_EVENT_INTERFACE_VERSION,
  VM_EVENT_REASON,
  VmEvent,
} from "./abi/mod.ts";
import { type Gfn, PAGE_BYTES } from "./ports.ts";

export interface PagingRequest {
  readonly gfn: Gfn;
  /** The vCPU that waits; of dom0 for a foreign request. */
  readonly vcpu: number;
  /** `VM_EVENT_FLAG_*`. */
  readonly flags: number;
  /** `MEM_PAGING_*`. */
  readonly pagingFlags: number;
  /** The page's type when the request was made: 9 paging_out, 10 paged, 11 paging_in. */
  readonly p2mt: number;
  /** The guest gave the page away: nothing is to be loaded. */
  readonly drop: boolean;
  /** Another domain (a backend in dom0) touched the page; no vCPU of this one waits. */
  readonly foreign: boolean;
  /** The page was only nominated and holds its content. */
  readonly evictFail: boolean;
}

/** The ring holds what Xen cannot have written, or was used against its rules. */
export class RingError extends Error {
  override readonly name = "RingError";
}

/** Word indices of the header's fields. */
const REQ_PROD = RingHeader.offsets.req_prod / 4;
const REQ_EVENT = RingHeader.offsets.req_event / 4;
const RSP_PROD = RingHeader.offsets.rsp_prod / 4;
const RSP_EVENT = RingHeader.offsets.rsp_event / 4;

/** An entry is on the way of every fault: its fields are reached by offset, a few hundred bytes of it are never looked at. */
const AT = VmEvent.offsets;

export class PagingRing {
  readonly #page: Uint8Array;
  readonly #data: DataView;
  /** Loads and stores through Atomics are ordered, as the ring's protocol asks for. */
  readonly #words: Uint32Array;
  /** Free-running 32-bit counters. */
  #requestsTaken = 0;
  #responsesMade = 0;

  /** `page`: the ring's page, mapped writable. */
  constructor(page: Uint8Array) {
    if (page.byteLength !== PAGE_BYTES) throw new RingError(`a ring is one page, not ${page.byteLength} bytes`);
    this.#page = page;
    this.#data = new DataView(page.buffer, page.byteOffset, page.byteLength);
    this.#words = new Uint32Array(page.buffer, page.byteOffset, RING_HEADER_BYTES / 4);
  }

  /** Requests taken and not answered yet. */
  get outstanding(): number {
    return (this.#requestsTaken - this.#responsesMade) >>> 0;
  }

  /** SHARED_RING_INIT. Xen relies on it: do it before the ring is enabled. Xen's counters start at 0; a test may start elsewhere. */
  initialise(start = 0): void {
    this.#page.fill(0);
    this.#requestsTaken = start;
    this.#responsesMade = start;
    Atomics.store(this.#words, REQ_PROD, start);
    Atomics.store(this.#words, RSP_PROD, start);
    Atomics.store(this.#words, REQ_EVENT, start + 1);
    Atomics.store(this.#words, RSP_EVENT, start + 1);
  }

  /** All requests that wait, 8 at most. Ones that come meanwhile raise an event. */
  takeRequests(): PagingRequest[] {
    const requests: PagingRequest[] = [];
    for (;;) {
      const produced = Atomics.load(this.#words, REQ_PROD);
      const waiting = (produced - this.#requestsTaken) >>> 0;
      if (waiting + this.outstanding > RING_ENTRIES) {
        throw new RingError(
          `the ring's producer index ${produced} is impossible: ${this.#requestsTaken} requests taken, ${this.outstanding} unanswered`,
        );
      }
      if (waiting === 0) return requests;
      for (let count = 0; count < waiting; count++) {
        requests.push(this.#read(this.#requestsTaken));
        this.#requestsTaken = (this.#requestsTaken + 1) >>> 0;
      }
      // Then look once more: a request that came before Xen saw this raises no event.
      Atomics.store(this.#words, REQ_EVENT, (this.#requestsTaken + 1) >>> 0);
    }
  }

  /**
   * Answers one request: Xen unpauses its vCPU at the next notification of the ring's port (one serves for many answers). The
   * page must be in before this.
   */
  respond(request: PagingRequest): void {
    if (this.outstanding === 0) throw new RingError("there is no request to answer");
    this.#put(request);
  }

  /**
   * Answers a request that another process took before it died, for `vcpu`: Xen unpauses it, and ignores the answer if it does not
   * wait. The counts of requests and answers no longer agree afterwards: the ring is only good for being closed.
   */
  respondForLost(vcpu: number, gfn: Gfn): void {
    this.#put({ gfn, vcpu, flags: VM_EVENT_FLAG.vcpu_paused, pagingFlags: 0, p2mt: 0 });
  }

  #put(request: Pick<PagingRequest, "gfn" | "vcpu" | "flags" | "pagingFlags" | "p2mt">): void {
    const slot = slotOffset(this.#responsesMade);
    this.#page.fill(0, slot, slot + VmEvent.size);
    // Xen drops an answer of another version, and its vCPU would wait for ever.
    this.#data.setUint32(slot + AT.version, VM_EVENT_INTERFACE_VERSION, true);
    this.#data.setUint32(slot + AT.flags, request.flags & VM_EVENT_FLAG.vcpu_paused, true);
    this.#data.setUint32(slot + AT.reason, VM_EVENT_REASON.mem_paging, true);
    this.#data.setUint32(slot + AT.vcpu_id, request.vcpu, true);
    this.#data.setBigUint64(slot + AT.gfn, request.gfn, true);
    this.#data.setUint32(slot + AT.p2mt, request.p2mt, true);
    this.#data.setUint32(slot + AT.paging_flags, request.pagingFlags, true);
    this.#responsesMade = (this.#responsesMade + 1) >>> 0;
    Atomics.store(this.#words, RSP_PROD, this.#responsesMade);
  }

  #read(index: number): PagingRequest {
    const slot = slotOffset(index);
    const flags = this.#data.getUint32(slot + AT.flags, true);
    const pagingFlags = this.#data.getUint32(slot + AT.paging_flags, true);
    return {
      gfn: this.#data.getBigUint64(slot + AT.gfn, true) as Gfn,
      vcpu: this.#data.getUint32(slot + AT.vcpu_id, true),
      flags,
      pagingFlags,
      p2mt: this.#data.getUint32(slot + AT.p2mt, true),
      drop: (pagingFlags & MEM_PAGING.drop_page) !== 0,
      foreign: (flags & VM_EVENT_FLAG.foreign) !== 0,
      evictFail: (pagingFlags & MEM_PAGING.evict_fail) !== 0,
    };
  }
}

function slotOffset(index: number): number {
  return RING_HEADER_BYTES + (index % RING_ENTRIES) * VmEvent.size;
}
