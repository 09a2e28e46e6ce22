/**
 * The back end's side of a shared ring of one page. The guest can write to all of it at any time: every value is read once, into
 * memory of our own, and then checked. Responses are given in the order of the requests, so that `rsp_prod`, which is in the
 * guest's memory, says exactly which requests are still to be done when this process dies: its successor starts there.
 */
import { PAGE_BYTES } from "../../hypercall/ports.ts";
import { DiskError } from "../errors.ts";
import { Response, type ResponseStatus, SharedRing, SLOT_BYTES, SLOTS } from "./abi.ts";

const REQ_PROD = SharedRing.offsets.req_prod / 4;
const REQ_EVENT = SharedRing.offsets.req_event / 4;
const RSP_PROD = SharedRing.offsets.rsp_prod / 4;
const RSP_EVENT = SharedRing.offsets.rsp_event / 4;

export class BackRing {
  readonly #page: Uint8Array;
  readonly #view: DataView;
  /** Read and written by Atomics only: they are real memory accesses, in order, with the barriers that ring.h asks for. */
  readonly #indices: Uint32Array<ArrayBuffer>;
  /** Of the next request to take. */
  #requests: number;
  /** Of the next response to give. */
  #responses: number;

  /** `page` is the ring as mapped from the guest, fresh or left by a predecessor. */
  constructor(page: Uint8Array<ArrayBuffer>) {
    if (page.byteLength < PAGE_BYTES || page.byteOffset % 4 !== 0) throw new RangeError("a ring is an aligned page");
    this.#page = page;
    this.#view = new DataView(page.buffer, page.byteOffset, PAGE_BYTES);
    this.#indices = new Uint32Array(page.buffer, page.byteOffset, SharedRing.offsets.ring / 4);
    this.#responses = Atomics.load(this.#indices, RSP_PROD);
    this.#requests = this.#responses;
  }

  /** Requests taken and not answered. */
  get unanswered(): number {
    return (this.#requests - this.#responses) >>> 0;
  }

  /** Requests that wait. Throws CORRUPT for a producer index that no honest guest can have: the ring is of no use any more. */
  available(): number {
    const produced = Atomics.load(this.#indices, REQ_PROD);
    if (((produced - this.#responses) >>> 0) > SLOTS || ((produced - this.#requests) >>> 0) > SLOTS) {
      throw new DiskError(
        "use the guest's ring",
        "CORRUPT",
        `its producer index is ${produced}, with ${this.#requests} requests taken and ${this.#responses} answered`,
      );
    }
    return (produced - this.#requests) >>> 0;
  }

  /** Copies the next request; `take` then moves past it. Only where one is available. */
  copyRequest(into: Uint8Array): void {
    const start = slotOffset(this.#requests);
    into.set(this.#page.subarray(start, start + SLOT_BYTES));
  }

  take(): void {
    this.#requests = (this.#requests + 1) >>> 0;
  }

  /** Puts the response to the oldest unanswered request; the guest sees it after `publish`. */
  respond(id: bigint, operation: number, status: ResponseStatus): void {
    const start = slotOffset(this.#responses);
    this.#view.setBigUint64(start + Response.offsets.id, id, true);
    this.#view.setUint8(start + Response.offsets.operation, operation);
    this.#view.setInt16(start + Response.offsets.status, status, true);
    this.#responses = (this.#responses + 1) >>> 0;
  }

  /** RING_PUSH_RESPONSES_AND_CHECK_NOTIFY: whether the guest wants an event. */
  publish(): boolean {
    const old = Atomics.load(this.#indices, RSP_PROD);
    Atomics.store(this.#indices, RSP_PROD, this.#responses);
    const wanted = Atomics.load(this.#indices, RSP_EVENT);
    return ((this.#responses - wanted) >>> 0) < ((this.#responses - old) >>> 0);
  }

  /** RING_FINAL_CHECK_FOR_REQUESTS: asks for an event at the next request. Whether some came in the meantime. */
  rearm(): boolean {
    Atomics.store(this.#indices, REQ_EVENT, (this.#requests + 1) >>> 0);
    return this.available() > 0;
  }
}

function slotOffset(index: number): number {
  return SharedRing.offsets.ring + (index & (SLOTS - 1)) * SLOT_BYTES;
}
