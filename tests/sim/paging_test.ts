import assert from "node:assert/strict";
import { RingHeader, VM_EVENT_FLAG, VmEvent } from "../../hypercall/abi/mod.ts";
import { errno } from "../../hypercall/errors.ts";
import { type Address, type Gfn, PAGE_BYTES } from "../../hypercall/ports.ts";
import { HostCrash } from "./errno.ts";
import { gfns, HANDLE, makeDomain, makePaged, open, prepFrom, RING_GFN, throwsCode } from "./fixture.ts";

Deno.test("the paging ring is enabled in the documented order of checks", () => {
  const pvh = open({ pvhDom0: true });
  throwsCode("EOPNOTSUPP", () => pvh.xen.pagingEnable(makeDomain(pvh.xen, 4)));
  const without = open({ paging: false });
  throwsCode("ENOSYS", () => without.xen.pagingEnable(makeDomain(without.xen, 4)));
  const { xen } = open();
  const bare = xen.createDomain({ vcpus: 1, handle: HANDLE });
  throwsCode("EINVAL", () => xen.pagingEnable(bare));
  const domid = makeDomain(xen, 4);
  throwsCode("EOPNOTSUPP", () => xen.pagingEnable(domid));
  xen.setHvmParam(domid, 27, RING_GFN);
  throwsCode("EINVAL", () => xen.pagingEnable(domid));
  xen.populate(domid, BigUint64Array.of(RING_GFN), 0);
  xen.pagingEnable(domid);
  throwsCode("EBUSY", () => xen.pagingEnable(domid));
  xen.pagingDisable(domid);
  throwsCode("EINVAL", () => xen.pagingDisable(domid));
});

Deno.test("a page out and in again by a vCPU's fault", () => {
  const { machine, xen, domid, ring, channels, port, domain, vcpu } = makePaged();
  const free = xen.physicalInfo().freePages;
  assert.deepEqual([...xen.pageOut(domid, gfns(0, 512))].filter((result) => result !== 0), []);
  assert.equal(xen.physicalInfo().freePages, free + 512n);
  assert.equal(xen.domainInfo(domid)?.pagedPages, 512n);
  xen.unpauseDomain(domid);
  assert.equal(domain.access(vcpu, 7, "write"), "wait");
  assert.equal(domain.access(vcpu, 7, "write"), "wait", "paused until it is answered");
  assert.deepEqual(channels.pending(), [port]);
  const [request, ...more] = ring.takeRequests();
  assert(request !== undefined && more.length === 0);
  assert.equal(request.gfn, 7n);
  assert.equal(request.flags, VM_EVENT_FLAG.vcpu_paused);
  assert.equal(request.p2mt, 10);
  using content = prepFrom(machine, 0x5a);
  assert.equal(xen.prep(domid, request.gfn, content.address), 0);
  assert.equal(xen.prep(domid, request.gfn, content.address), -errno("ENOENT"));
  ring.respond(request);
  channels.notify(port);
  const access = domain.access(vcpu, 7, "write");
  assert(typeof access === "object");
  assert.equal(access.frame.bytes[4095], 0x5a);
});

Deno.test("nominated: the first touch is told, the page keeps its content, and the answer alone brings it back", () => {
  const { xen, domid, ring, channels, port, domain, vcpu } = makePaged();
  xen.unpauseDomain(domid);
  const before = domain.access(vcpu, 7, "write");
  assert(typeof before === "object");
  before.frame.write(0, Uint8Array.of(9));
  assert.deepEqual([...xen.nominate(domid, gfns(7, 1))], [0]);
  assert.equal(domain.access(vcpu, 7, "read"), "wait");
  const [request] = ring.takeRequests();
  assert(request?.evictFail === true && request.p2mt === 9);
  assert.deepEqual([...xen.pageOut(domid, gfns(7, 1))], [-errno("EBUSY")]);
  ring.respond(request);
  channels.notify(port);
  const after = domain.access(vcpu, 7, "read");
  assert(typeof after === "object" && after.frame.bytes[0] === 9);
  assert.equal(xen.prep(domid, 7n as Gfn, 0n), -errno("ENOENT"));
});

Deno.test("set_mem_type on a nominated page: EAGAIN, a foreign request, then prep without a buffer", () => {
  const { xen, domid, ring, channels, port } = makePaged();
  xen.nominate(domid, gfns(7, 1));
  assert.equal(xen.prep(domid, 7n as Gfn, 0n), -errno("ENOENT"));
  assert.equal(xen.setMemoryType(domid, 0, 7n as Gfn, 1), -errno("EAGAIN"));
  const [request] = ring.takeRequests();
  assert(request?.foreign === true);
  assert.equal(xen.prep(domid, request.gfn, 0n), 0);
  ring.respond(request);
  channels.notify(port);
  assert.equal(xen.setMemoryType(domid, 0, 7n as Gfn, 1), 0);
});

Deno.test("references keep a page from being nominated: mappings, vcpu_info, Xen's own pages", () => {
  const { machine, sim, xen, domid, domain, vcpu } = makePaged();
  using mapping = machine.map(domid, gfns(1, 1), { write: false });
  assert.equal(mapping.errors[0], 0);
  assert.equal(domain.registerVcpuInfo(vcpu, vcpu, 2), 0);
  assert.equal(domain.registerVcpuInfo(vcpu, vcpu, 3), -errno("EINVAL"));
  assert.equal(domain.mapSharedInfo(4), 0);
  const busy = -errno("EBUSY");
  assert.deepEqual([...xen.nominate(domid, gfns(0, 5))], [0, busy, busy, 0, busy]);
  assert.deepEqual([...xen.pageTypes(domid, gfns(3, 3))], [0, 0xf, 0]);
  assert.equal(xen.domainInfo(domid)?.sharedInfoGfn, 4n);
  using late = machine.map(domid, gfns(3, 1), { write: false });
  assert.equal(late.errors[0], 0, "a nominated page can be mapped");
  assert.deepEqual([...xen.pageOut(domid, gfns(3, 1))], [busy]);
  assert.equal(sim.domain(domid).memory.p2m.get(3).type, "ram_paging_out");
});

Deno.test("a full ring: the guest's vCPU sleeps for a slot, a foreigner's request is dropped, DISABLE is EBUSY", () => {
  const { machine, xen, domid, ring, channels, port, domain, vcpu } = makePaged();
  xen.pageOut(domid, gfns(0, 64));
  xen.unpauseDomain(domid);
  using failed = machine.map(domid, gfns(0, 9), { write: false });
  assert.deepEqual([...failed.errors], new Array(9).fill(-errno("ENOENT")));
  assert.equal(domain.memory.p2m.get(8).type, "ram_paged", "the ninth request found no slot");
  assert.equal(domain.access(vcpu, 20, "read"), "wait");
  assert.equal(vcpu.waitsForSlot, 20);
  throwsCode("EBUSY", () => xen.pagingDisable(domid));
  const requests = ring.takeRequests();
  assert.equal(requests.length, 8);
  using content = prepFrom(machine, 1);
  for (const request of requests) {
    assert.equal(xen.prep(domid, request.gfn, content.address), 0);
    ring.respond(request);
  }
  channels.notify(port);
  assert.deepEqual(ring.takeRequests().map(({ gfn }) => gfn), [20n]);
});

Deno.test("an answer of another version is dropped: its slot is free, its vCPU stays paused", () => {
  const { mapping, xen, domid, ring, channels, port, domain, vcpu } = makePaged();
  xen.pageOut(domid, gfns(0, 8));
  xen.unpauseDomain(domid);
  domain.access(vcpu, 0, "read");
  const [request] = ring.takeRequests();
  assert(request !== undefined);
  ring.respond(request);
  new DataView(mapping.bytes.buffer, mapping.bytes.byteOffset).setUint32(64, 1, true);
  channels.notify(port);
  assert.equal(vcpu.vmEventPauses, 1);
  assert.equal(domain.paging.freeSlots, 8);
});

Deno.test("a page being paged in: another vCPU spins without a request; populating over it ends the host", () => {
  const { xen, domid, ring, domain, vcpu, second } = makePaged();
  xen.pageOut(domid, gfns(0, 8));
  xen.unpauseDomain(domid);
  domain.access(vcpu, 0, "read");
  assert.equal(domain.access(second, 0, "read"), "wait");
  assert.equal(second.spins, 1);
  assert.equal(ring.takeRequests().length, 1);
  assert.throws(() => xen.populate(domid, gfns(0, 1), 0), HostCrash);
  xen.populate(domid, gfns(1, 1), 0);
  assert.equal(xen.domainInfo(domid)?.pagedPages, 7n, "over a page that is out it is fine");
});

Deno.test("a page that is out cannot be given back; one that is only nominated can, unnoticed", () => {
  const { xen, domid, ring, domain } = makePaged();
  xen.pageOut(domid, gfns(0, 1));
  xen.nominate(domid, gfns(1, 1));
  throwsCode("EINVAL", () => xen.decreaseReservation(domid, gfns(0, 1)));
  xen.decreaseReservation(domid, gfns(1, 1));
  assert.equal(domain.memory.p2m.get(1).type, "hole");
  assert.equal(ring.takeRequests().length, 0);
});

Deno.test("touching a page that is out without a ring crashes the domain", () => {
  const { xen, domid, domain, vcpu } = makePaged();
  xen.pageOut(domid, gfns(0, 1));
  xen.unpauseDomain(domid);
  xen.pagingDisable(domid);
  domain.access(vcpu, 0, "read");
  assert.deepEqual([xen.domainInfo(domid)?.shutdown, xen.domainInfo(domid)?.shutdownReason], [true, 3]);
});

Deno.test("prep: no buffer is EINVAL, a bad one EFAULT, no memory ENOMEM; nothing is lost by a failure", () => {
  const { machine, sim, xen, domid, domain } = makePaged();
  xen.pageOut(domid, gfns(0, 4));
  assert.equal(xen.prep(domid, 0n as Gfn, 0n), -errno("EINVAL"));
  assert.equal(xen.prep(domid, 0n as Gfn, 0x1000n as Address), -errno("EFAULT"));
  const free = sim.memory.freePages;
  assert(sim.memory.take(free));
  using content = prepFrom(machine, 1);
  assert.equal(xen.prep(domid, 0n as Gfn, content.address), -errno("ENOMEM"));
  sim.memory.give(free);
  assert.equal(xen.prep(domid, 0n as Gfn, content.address), 0);
  assert.equal(domain.memory.pagedPages, 3);
});

Deno.test("prep may read a foreign mapping of the parent", () => {
  const { machine, xen, domid, domain } = makePaged();
  const parent = makeDomain(xen, 16);
  using pages = machine.map(parent, gfns(0, 16), { write: true });
  pages.bytes.fill(3, PAGE_BYTES, 2 * PAGE_BYTES);
  xen.pageOut(domid, gfns(0, 4));
  assert.deepEqual(
    [...xen.prepMany(domid, gfns(0, 2), BigUint64Array.of(pages.address, pages.address + BigInt(PAGE_BYTES)))],
    [0, 0],
  );
  assert.equal(domain.memory.p2m.get(1).frame?.bytes[0], 3);
});

Deno.test("grants: seeded through the table, copied, and EAGAIN for a page that is out", () => {
  const { machine, xen, domid, ring } = makePaged();
  using table = machine.mapResource(domid, 1, 0, 0, 1);
  const entries = new DataView(table.bytes.buffer, table.bytes.byteOffset);
  entries.setUint32(4 + 8 * 8, 5, true);
  entries.setUint16(8 * 8, 1, true);
  using grants = machine.openGrants();
  using local = prepFrom(machine, 0xcc);
  const segment = {
    source: { address: local.address },
    dest: { domid, ref: 8, offset: 100 },
    byteLength: 10,
  } as const;
  assert.deepEqual([...grants.copy([segment])], [0]);
  using page = machine.map(domid, gfns(5, 1), { write: false });
  assert.deepEqual([...page.bytes.subarray(99, 111)], [0, ...new Array(10).fill(0xcc), 0]);
  page[Symbol.dispose]();
  xen.pageOut(domid, gfns(5, 1));
  assert.deepEqual([...grants.copy([segment, { ...segment, dest: { domid, ref: 9, offset: 0 } }])], [-12, -1]);
  assert.equal(ring.takeRequests()[0]?.foreign, true);
});

Deno.test("faults: an operation can be made to fail, in a multicall too", () => {
  const { machine, xen, domid } = makePaged();
  machine.faults.failNext("domctl.pausedomain", "ENOMEM");
  throwsCode("ENOMEM", () => xen.pauseDomain(domid));
  xen.pauseDomain(domid);
  machine.faults.failNext("paging.evict", "EBUSY", { skip: 2 });
  const results = [...xen.pageOut(domid, gfns(0, 4))];
  assert.deepEqual(results, [0, 0, -errno("EBUSY"), 0]);
});

Deno.test("after DISABLE a vCPU waits for ever; an answer on a new ring frees it, and miscounts that ring", () => {
  const { machine, xen, domid, domain, vcpu } = makePaged();
  xen.pageOut(domid, gfns(0, 16));
  xen.unpauseDomain(domid);
  domain.access(vcpu, 0, "read");
  xen.pagingDisable(domid);
  assert.equal(vcpu.vmEventPauses, 1);
  xen.populate(domid, BigUint64Array.of(RING_GFN), 0);
  using page = machine.map(domid, BigUint64Array.of(RING_GFN), { write: true });
  page.bytes.fill(0);
  using channels = machine.openEventChannels();
  const port = channels.bindInterdomain(domid, xen.pagingEnable(domid));
  VmEvent.encodeInto({ version: 7, reason: 3, flags: VM_EVENT_FLAG.vcpu_paused, gfn: 5n }, page.bytes, 64);
  RingHeader.view(page.bytes).rsp_prod = 1;
  channels.notify(port);
  assert.equal(vcpu.vmEventPauses, 0);
  assert.equal(domain.paging.freeSlots, 9, "one more than there are");
});
