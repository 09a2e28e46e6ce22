import { deepEqual, equal, throws } from "node:assert/strict";
import { RING_ENTRIES, RING_HEADER_BYTES, RingHeader, VmEvent } from "./abi/mod.ts";
import type { PagingRequest } from "./ring.ts";
import { PagingRing, RingError } from "./ring.ts";

/** Xen's end, written from public/io/ring.h. */
class Front {
  readonly page = new Uint8Array(4096);
  readonly header = RingHeader.view(this.page);
  produced = 0;
  consumed = 0;

  slot(index: number) {
    return VmEvent.view(this.page, RING_HEADER_BYTES + (index & (RING_ENTRIES - 1)) * VmEvent.size);
  }
  put(gfn: bigint, flags = 1, pagingFlags = 0): void {
    const slot = this.slot(this.produced);
    slot.version = 7;
    slot.flags = flags;
    slot.reason = 3;
    slot.vcpu_id = 1;
    slot.gfn = gfn;
    slot.p2mt = 10;
    slot.paging_flags = pagingFlags;
    this.produced = (this.produced + 1) >>> 0;
    this.header.req_prod = this.produced;
  }
  *answers() {
    while (this.consumed !== this.header.rsp_prod) {
      yield this.slot(this.consumed);
      this.consumed = (this.consumed + 1) >>> 0;
    }
  }
}

function opened(): { front: Front; ring: PagingRing } {
  const front = new Front();
  front.page.fill(0xee);
  const ring = new PagingRing(front.page);
  ring.initialise();
  return { front, ring };
}

Deno.test("a fresh ring is what SHARED_RING_INIT makes", () => {
  const { front } = opened();
  deepEqual(RingHeader.decode(front.page), { req_prod: 0, req_event: 1, rsp_prod: 0, rsp_event: 1 });
  equal(front.page.subarray(16).every((byte) => byte === 0), true);
});

Deno.test("requests come out as they were put, and each answer says so to Xen", () => {
  const { front, ring } = opened();
  front.put(0x12_3456_789an);
  front.put(5n, 2);
  front.put(6n, 1, 2);
  front.put(7n, 0, 3);
  const [fault, foreign, evictFail, drop] = ring.takeRequests();
  deepEqual(fault, {
    gfn: 0x12_3456_789an,
    vcpu: 1,
    flags: 1,
    pagingFlags: 0,
    p2mt: 10,
    drop: false,
    foreign: false,
    evictFail: false,
  });
  deepEqual([foreign?.foreign, evictFail?.evictFail, drop?.drop], [true, true, true]);
  equal(front.header.req_event, 5);
  for (const request of [fault, foreign, evictFail, drop]) ring.respond(request as PagingRequest);
  const answers = [...front.answers()].map(({ version, reason, flags, gfn, vcpu_id, paging_flags }) => ({
    version,
    reason,
    flags,
    gfn,
    vcpu_id,
    paging_flags,
  }));
  deepEqual(answers, [
    { version: 7, reason: 3, flags: 1, gfn: 0x12_3456_789an, vcpu_id: 1, paging_flags: 0 },
    { version: 7, reason: 3, flags: 0, gfn: 5n, vcpu_id: 1, paging_flags: 0 },
    { version: 7, reason: 3, flags: 1, gfn: 6n, vcpu_id: 1, paging_flags: 2 },
    { version: 7, reason: 3, flags: 0, gfn: 7n, vcpu_id: 1, paging_flags: 3 },
  ]);
  equal(ring.outstanding, 0);
});

Deno.test("the ring goes round many times, with answers out of order and slots always full", () => {
  const { front, ring } = opened();
  const waiting: PagingRequest[] = [];
  const answered: bigint[] = [];
  let next = 0n;
  for (let turn = 0; turn < 1000; turn++) {
    while (next - BigInt(answered.length) < 8n) front.put(next++);
    waiting.push(...ring.takeRequests());
    equal(waiting.length, 8);
    for (let count = 0; count <= turn % 8; count++) {
      const [request] = waiting.splice((turn * 7) % waiting.length, 1);
      if (request !== undefined) ring.respond(request);
    }
    for (const answer of front.answers()) answered.push(answer.gfn);
  }
  equal(new Set(answered).size, answered.length);
  equal(answered.length + waiting.length, Number(next));
});

Deno.test("indices wrap at 32 bits", () => {
  const { front, ring } = opened();
  const start = 0xffff_fffd;
  ring.initialise(start);
  front.produced = start;
  front.put(1n);
  front.put(2n);
  front.put(3n);
  front.put(4n);
  const requests = ring.takeRequests();
  deepEqual(requests.map(({ gfn }) => gfn), [1n, 2n, 3n, 4n]);
  equal(front.header.req_event, 2);
  requests.forEach((request) => ring.respond(request));
  equal(front.header.rsp_prod, 1);
  equal(ring.outstanding, 0);
});

Deno.test("a producer index that Xen cannot have written is refused, whatever it is", () => {
  for (const wild of [9, 100, 0x8000_0000, 0xffff_ffff]) {
    const { front, ring } = opened();
    front.header.req_prod = wild;
    throws(() => ring.takeRequests(), RingError);
    throws(() => ring.takeRequests(), RingError);
  }
  const { front, ring } = opened();
  for (let gfn = 0n; gfn < 8n; gfn++) front.put(gfn);
  equal(ring.takeRequests().length, 8);
  front.put(8n);
  throws(() => ring.takeRequests(), /impossible/);
});

Deno.test("an answer without a request is refused", () => {
  const { front, ring } = opened();
  front.put(1n);
  const [request] = ring.takeRequests();
  ring.respond(request as PagingRequest);
  throws(() => ring.respond(request as PagingRequest), RingError);
  throws(() => new PagingRing(new Uint8Array(4095)), RingError);
});
