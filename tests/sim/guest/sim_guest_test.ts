import assert from "node:assert/strict";
import { HVM_PARAM, SHUTDOWN, XS } from "../../../hypercall/abi/mod.ts";
import {
  DOM0,
  type Domid,
  type EventChannelPort,
  type Gfn,
  PAGE_BYTES,
  type PinnedMemory,
  type Port,
} from "../../../hypercall/ports.ts";
import { PagingRing } from "../../../hypercall/ring.ts";
import { openXen } from "../../../hypercall/xen.ts";
import type { Xen } from "../../../hypercall/xen_api.ts";
import { encodeStrings } from "../../../hypercall/xenstore/wire.ts";
import { openSimMachine, type SimMachine } from "../machine.ts";
import { SimXen, type SimXenOptions } from "../sim_xen.ts";
import { SimXenstore } from "../xenstore/server.ts";
import { LAYOUT } from "./boot.ts";
import { drive } from "./drive.ts";
import { GuestStore } from "./guest_store.ts";
import { fillStore, floodRequests, sendOversized, writeGarbage } from "./hostile.ts";
import { type GuestOptions, SimGuest } from "./sim_guest.ts";

const RAM_PAGES = 512;
const USER = Array.from({ length: 100 }, (_, index) => LAYOUT.user + index);

function host(options: SimXenOptions = {}) {
  const sim = new SimXen(options);
  const store = new SimXenstore(sim);
  const machine = openSimMachine(sim);
  const toolstack = new GuestStore(store.connectToolstack());
  const xen = openXen(machine.hypercalls);
  const boot = (options: GuestOptions = {}) =>
    SimGuest.boot(sim, store, { ...options, ram: [{ first: 0, pages: RAM_PAGES }], vifs: 1 });
  return { sim, store, machine, toolstack, xen, boot };
}
type Host = ReturnType<typeof host>;

function run(guest: SimGuest, body: () => Generator<void, void, void>): void {
  let done = false;
  guest.spawn(
    0,
    function* () {
      yield* body();
      done = true;
    }(),
  );
  drive(() => [guest], () => {}, () => done);
}

function openRing(machine: SimMachine, xen: Xen, channels: EventChannelPort, domid: Domid) {
  const gfn = xen.hvmParam(domid, HVM_PARAM.PAGING_RING_PFN);
  const mapping = machine.map(domid, BigUint64Array.of(gfn), { write: true });
  const ring = new PagingRing(mapping.bytes);
  ring.initialise();
  return { ring, port: channels.bindInterdomain(domid, xen.pagingEnable(domid)) };
}

/** A fork as small as it can be: the parent copies on its first touch, the child's pages come from the copies or the parent. */
class SmallFork {
  readonly child: Domid;
  readonly #host: Host;
  readonly #parent: Domid;
  readonly #channels: EventChannelPort;
  readonly #copies = new Map<bigint, PinnedMemory>();
  readonly #rings: { readonly ring: PagingRing; readonly port: Port; readonly domid: Domid }[] = [];

  constructor(parts: Host, parent: Domid) {
    const { xen, machine, sim } = parts;
    this.#host = parts;
    this.#parent = parent;
    this.#channels = machine.openEventChannels();
    const dirty = xen.logDirtyPeek(parent, BigInt(RAM_PAGES));
    const context = xen.hvmContext(parent);
    const types = xen.pageTypes(parent, BigUint64Array.from({ length: RAM_PAGES }, (_, gfn) => BigInt(gfn)));
    const ram = Array.from(types.entries()).filter(([, type]) => type === 0).map(([gfn]) => BigInt(gfn));
    const isHot = (gfn: bigint) => ((dirty[Number(gfn >> 3n)] ?? 0) >> Number(gfn & 7n) & 1) === 1;

    const child = xen.createDomain({ vcpus: 2, handle: new Uint8Array(16).fill(0x42) });
    this.child = child;
    xen.setMaxVcpus(child, 2);
    xen.setMaxMemory(child, BigInt(RAM_PAGES + 64) * 4n);
    xen.setPagingMempool(child, 8n << 20n);
    xen.setCpuPolicy(child, xen.cpuPolicy(parent));
    const special = BigUint64Array.from({ length: 8 }, (_, index) => BigInt(0xfeff8 + index));
    xen.populate(child, special, 0);
    for (const index of [HVM_PARAM.STORE_PFN, HVM_PARAM.CONSOLE_PFN, HVM_PARAM.IDENT_PT, HVM_PARAM.PAGING_RING_PFN]) {
      xen.setHvmParam(child, index, xen.hvmParam(parent, index));
    }
    this.#rings.push({ ...openRing(machine, xen, this.#channels, child), domid: child });
    this.#rings.push({ ...openRing(machine, xen, this.#channels, parent), domid: parent });
    xen.populate(child, BigUint64Array.from(ram), 0);
    assert(xen.pageOut(child, BigUint64Array.from(ram)).every((result) => result === 0));
    for (const gfn of ram.filter(isHot)) this.#copy(gfn);
    for (const gfn of ram.filter(isHot)) assert.equal(xen.prep(child, gfn as Gfn, this.#copy(gfn).address), 0);
    xen.setHvmContext(child, context);
    const storePort = xen.allocateUnbound(child, DOM0);
    xen.setHvmParam(child, HVM_PARAM.STORE_EVTCHN, BigInt(storePort));
    sim.domain(child).grants.grant(1, 0, 0xfeffc, false);
    const root = `/local/domain/${child}`;
    for (const path of ["control/shutdown", "data"]) {
      parts.toolstack.write(`${root}/${path}`, "");
      parts.toolstack.setPermissions(`${root}/${path}`, `n${child}`);
    }
    parts.toolstack.request(XS.INTRODUCE, encodeStrings(String(child), "0", String(storePort)));
    const cold = ram.filter((gfn) => !isHot(gfn));
    assert(xen.nominate(parent, BigUint64Array.from(cold)).every((result) => result === 0));
    xen.logDirtyOff(parent);
  }

  get copies(): number {
    return this.#copies.size;
  }

  resumeParent(): void {
    const { xen, toolstack } = this.#host;
    const context = xen.vcpuContext(this.#parent, 0);
    new DataView(context.buffer).setBigUint64(600, 1n, true);
    xen.setVcpuContext(this.#parent, 0, context);
    xen.resumeDomain(this.#parent);
    toolstack.request(XS.RESUME, encodeStrings(String(this.#parent)));
  }

  #copy(gfn: bigint): PinnedMemory {
    const known = this.#copies.get(gfn);
    if (known !== undefined) return known;
    const memory = this.#host.machine.allocate(PAGE_BYTES);
    using page = this.#host.machine.map(this.#parent, BigUint64Array.of(gfn), { write: false });
    assert.equal(page.errors[0], 0);
    memory.bytes.set(page.bytes);
    this.#copies.set(gfn, memory);
    return memory;
  }

  serve(): void {
    for (const port of this.#channels.pending()) this.#channels.unmask(port);
    for (const { ring, port, domid } of this.#rings) {
      const requests = ring.takeRequests();
      for (const request of requests) {
        const copy = this.#copy(request.gfn);
        this.#host.xen.prep(domid, request.gfn, domid === this.#parent ? 0n : copy.address);
        ring.respond(request);
      }
      if (requests.length > 0) this.#channels.notify(port);
    }
  }
}

function suspendForFork({ xen, toolstack }: Host, guest: SimGuest): Domid {
  const domid = guest.domid as Domid;
  xen.logDirtyEnable(domid);
  toolstack.write(`/local/domain/${domid}/control/shutdown`, "suspend");
  drive(() => [guest], () => {}, () => !guest.alive);
  assert.equal(xen.domainInfo(domid)?.shutdownReason, SHUTDOWN.suspend);
  return domid;
}

Deno.test("a booted guest writes, verifies, and notices a page that is not what it wrote", () => {
  const { boot, machine } = host();
  const guest = boot();
  run(guest, function* () {
    for (const gfn of USER) yield* guest.fill(1, gfn, { seed: 5, round: 1 });
    for (const gfn of USER) assert.deepEqual(yield* guest.verify(0, gfn), { seed: 5, round: 1 });
  });
  using page = machine.map(guest.domid as Domid, BigUint64Array.of(70n), { write: true });
  page.bytes[2000] = (page.bytes[2000] ?? 0) ^ 1;
  run(guest, function* () {
    assert.equal(yield* guest.verify(0, 70), "wrong");
    assert.equal(yield* guest.verify(0, 400), "zero");
  });
  assert.deepEqual(guest.wrongPages, [70]);
});

Deno.test("a fork by hand: parent and child go on with the same memory and then each with its own", () => {
  const parts = host();
  const parent = parts.boot();
  run(parent, function* () {
    for (const gfn of USER) yield* parent.fill(0, gfn, { seed: 5, round: 1 });
  });
  const domid = suspendForFork(parts, parent);
  const fork = new SmallFork(parts, domid);
  fork.resumeParent();
  const child = SimGuest.adopt(parts.sim, parts.store, fork.child);
  parts.xen.unpauseDomain(fork.child);
  let finished = 0;
  function* work(guest: SimGuest, vcpu: number, seed: number) {
    for (const gfn of USER) assert.deepEqual(yield* guest.verify(vcpu, gfn), { seed: 5, round: 1 });
    for (const gfn of USER) yield* guest.fill(vcpu, gfn, { seed, round: 2 });
    yield;
    for (const gfn of USER) assert.deepEqual(yield* guest.verify(vcpu, gfn), { seed, round: 2 });
    finished++;
  }
  drive(() => [parent, child], () => fork.serve(), () => parent.resumes + child.restores === 2);
  parent.spawn(1, work(parent, 1, 6));
  child.spawn(1, work(child, 1, 7));
  drive(() => [parent, child], () => fork.serve(), () => finished === 2);
  assert.deepEqual([parent.panic, child.panic, parent.wrongPages, child.wrongPages], [undefined, undefined, [], []]);
  assert.equal(child.store?.read("control/shutdown"), "");
  assert(fork.copies >= USER.length);
});

Deno.test("a clone whose vcpu_info pages are out panics as Linux does", () => {
  const parts = host();
  const parent = parts.boot();
  const domid = suspendForFork(parts, parent);
  const fork = new SmallFork(parts, domid);
  const infoGfns = BigUint64Array.of(BigInt(LAYOUT.vcpuInfo));
  assert.deepEqual([...parts.xen.pageOut(fork.child, infoGfns)], [0]);
  const child = SimGuest.adopt(parts.sim, parts.store, fork.child);
  parts.xen.unpauseDomain(fork.child);
  drive(() => [child], () => fork.serve(), () => !child.alive);
  assert.match(child.panic ?? "", /register_vcpu_info failed/);
  assert.equal(parts.xen.domainInfo(fork.child)?.shutdownReason, SHUTDOWN.crash);
});

Deno.test("a resumed parent keeps its vcpu_info, and may be suspended again", () => {
  const parts = host();
  const parent = parts.boot();
  const domid = suspendForFork(parts, parent);
  const fork = new SmallFork(parts, domid);
  fork.resumeParent();
  drive(() => [parent], () => fork.serve(), () => parent.resumes === 1);
  parts.toolstack.write(`/local/domain/${domid}/control/shutdown`, "suspend");
  drive(() => [parent], () => fork.serve(), () => !parent.alive);
  assert.equal(parts.xen.domainInfo(domid)?.shutdownReason, SHUTDOWN.suspend);
});

Deno.test("a guest that was resumed in place without rax = 1 panics: its vcpu_info is registered already", () => {
  const parts = host();
  const guest = parts.boot();
  const domid = suspendForFork(parts, guest);
  parts.xen.resumeDomain(domid);
  drive(() => [guest], () => {}, () => !guest.alive);
  assert.match(guest.panic ?? "", /register_vcpu_info/);
});

Deno.test("manners: a guest may ignore the request, take its time, power off or crash", () => {
  const parts = host();
  const ask = (guest: SimGuest, steps: number) => {
    parts.toolstack.write(`/local/domain/${guest.domid}/control/shutdown`, "suspend");
    for (let step = 0; step < steps; step++) guest.step();
    const info = parts.xen.domainInfo(guest.domid as Domid);
    return info?.shutdown === true ? info.shutdownReason : undefined;
  };
  assert.equal(ask(parts.boot({ suspend: "ignores" }), 50), undefined);
  const slow = parts.boot({ suspendDelaySteps: 20 });
  assert.equal(ask(slow, 10), undefined);
  for (let step = 0; step < 20; step++) slow.step();
  assert.equal(slow.alive, false);
  assert.equal(ask(parts.boot({ suspend: "powers-off" }), 5), SHUTDOWN.poweroff);
  assert.equal(ask(parts.boot({ suspend: "crashes" }), 5), SHUTDOWN.crash);
});

Deno.test("RAM may have holes and lie above 4 GiB", () => {
  const { sim, store, xen } = host();
  const high = 0x100000;
  const ram = [{ first: 16, pages: 200 }, { first: 1000, pages: 24 }, { first: high, pages: 64 }];
  const guest = SimGuest.boot(sim, store, { ram, vcpus: 1 });
  run(guest, function* () {
    yield* guest.fill(0, high + 63, { seed: 1, round: 1 });
    assert.deepEqual(yield* guest.verify(0, high + 63), { seed: 1, round: 1 });
    assert.deepEqual((yield* guest.read(0, 500)).subarray(0, 2), Uint8Array.of(0xff, 0xff));
  });
  const domid = guest.domid as Domid;
  assert.equal(xen.maximumGfn(domid), BigInt(high + 63));
  assert.deepEqual([...xen.pageTypes(domid, BigUint64Array.of(0n, 16n, 18n, 1000n, 1024n))], [0xf, 0, 0xf, 0, 0xf]);
});

Deno.test("hostile guests are stopped by xenstored where it stops them", () => {
  const { sim, store, boot } = host();
  const guest = boot();
  const mine = guest.store;
  assert(mine !== undefined);
  assert.equal(writeGarbage(mine), undefined, "garbage is a value like any other");
  assert.equal(floodRequests(mine, 100), undefined);
  assert.equal(fillStore(mine), "ENOSPC");
  const kernel = store.connectGuest(guest.domid);
  sendOversized((bytes) => kernel.feed(bytes));
  assert.equal(kernel.closed, true);
  assert.equal(sim.domain(guest.domid).dying, false);
});
