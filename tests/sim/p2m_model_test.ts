/** Random operations on a small domain, beside a model that is a table of what the sources say (mem_paging.c, p2m.c, memory.c). */
import assert from "node:assert/strict";
import fc from "fast-check";
import { errno } from "../../hypercall/errors.ts";
import { type ForeignMapping, type Gfn, PAGE_BYTES } from "../../hypercall/ports.ts";
import { gfns, makePaged } from "./fixture.ts";
import { HostCrash } from "./errno.ts";

const PAGES = 6;
const BUSY = -errno("EBUSY");
const ENOENT = -errno("ENOENT");

interface ModelPage {
  type: "hole" | "ram" | "out" | "paged" | "in";
  /** The first byte of its frame, where it has one. */
  byte: number | undefined;
  maps: number;
}

type Action =
  | {
    readonly do: "nominate" | "evict" | "prep" | "prepNull" | "populate" | "remove" | "setType";
    readonly gfn: number;
  }
  | { readonly do: "touch"; readonly gfn: number; readonly vcpu: 0 | 1; readonly byte: number | undefined }
  | { readonly do: "map"; readonly gfn: number }
  | { readonly do: "unmap" | "serve" | "logDirty"; readonly gfn: number };

const gfnOf = fc.integer({ min: 0, max: PAGES - 1 });
const action: fc.Arbitrary<Action> = fc.oneof(
  fc.record({
    do: fc.constantFrom("nominate" as const, "evict" as const, "prep" as const, "prepNull" as const),
    gfn: gfnOf,
  }),
  fc.record({ do: fc.constantFrom("populate" as const, "remove" as const, "setType" as const), gfn: gfnOf }),
  fc.record({
    do: fc.constant("touch" as const),
    gfn: gfnOf,
    vcpu: fc.constantFrom(0 as const, 1 as const),
    byte: fc.option(fc.integer({ min: 1, max: 255 }), { nil: undefined }),
  }),
  fc.record({
    do: fc.constantFrom("map" as const, "unmap" as const, "serve" as const, "logDirty" as const),
    gfn: gfnOf,
  }),
);

class Run {
  readonly parts = makePaged(64);
  readonly model: ModelPage[] = Array.from({ length: PAGES }, () => ({ type: "ram", byte: 0, maps: 0 }));
  readonly paused = [false, false];
  readonly held: { readonly gfn: number; readonly page: ModelPage; readonly mapping: ForeignMapping }[] = [];
  requests = 0;
  orphans = 0;
  logging = false;
  readonly content = this.parts.machine.allocate(PAGE_BYTES);

  constructor() {
    this.parts.xen.unpauseDomain(this.parts.domid);
    this.content.bytes[0] = 0x77;
  }

  page(gfn: number): ModelPage {
    const page = this.model[gfn];
    assert(page !== undefined);
    return page;
  }

  /** A request of somebody who found the page in a paging state. */
  expectRequest(page: ModelPage, vcpu: number | undefined): void {
    if (page.type === "in" && vcpu === undefined) return;
    if (page.type !== "in") page.type = "in";
    if (vcpu !== undefined) this.paused[vcpu] = true;
    this.requests++;
  }

  act(step: Action): void {
    const { xen, domid } = this.parts;
    const page = this.page(step.gfn);
    const gfn = BigInt(step.gfn) as Gfn;
    switch (step.do) {
      case "nominate": {
        const free = page.type === "ram" && page.maps === 0;
        assert.deepEqual([...xen.nominate(domid, gfns(step.gfn, 1))], [free ? 0 : BUSY]);
        if (free) page.type = "out";
        return;
      }
      case "evict": {
        // pageOut nominates and evicts in one multicall, which goes on after an error: a page that was nominated before is
        // evicted, although the result is the nomination's EBUSY.
        const free = page.type === "ram" && page.maps === 0;
        assert.deepEqual([...xen.pageOut(domid, gfns(step.gfn, 1))], [free ? 0 : BUSY]);
        if (free || (page.type === "out" && page.maps === 0)) {
          this.model[step.gfn] = { type: "paged", byte: undefined, maps: 0 };
        }
        return;
      }
      case "prep":
      case "prepNull": {
        const waits = page.type === "paged" || page.type === "in";
        const needs = waits && page.byte === undefined;
        const result = xen.prep(domid, gfn, step.do === "prep" ? this.content.address : 0n);
        if (!waits) return assert.equal(result, ENOENT);
        if (needs && step.do === "prepNull") return assert.equal(result, -errno("EINVAL"));
        assert.equal(result, 0);
        page.type = "ram";
        page.byte ??= 0x77;
        return;
      }
      case "populate": {
        if (page.type === "in" && page.byte === undefined) {
          assert.throws(() => xen.populate(domid, gfns(step.gfn, 1), 0), HostCrash);
          // The real host is gone. Here the frame that was taken is lost, and the test goes on.
          this.orphans++;
          return;
        }
        if (this.parts.domain.memory.totalPages >= this.parts.domain.memory.maxPages) return;
        xen.populate(domid, gfns(step.gfn, 1), 0);
        if (page.byte !== undefined) this.orphans++;
        this.model[step.gfn] = { type: "ram", byte: 0, maps: 0 };
        return;
      }
      case "remove": {
        if (page.type === "hole" || page.byte === undefined) {
          assert.throws(() => xen.decreaseReservation(domid, gfns(step.gfn, 1)));
          return;
        }
        xen.decreaseReservation(domid, gfns(step.gfn, 1));
        this.model[step.gfn] = { type: "hole", byte: undefined, maps: 0 };
        return;
      }
      case "setType": {
        if (this.requests >= 8 && page.type !== "ram" && page.type !== "hole") return;
        const result = xen.setMemoryType(domid, 0, gfn, 1);
        if (page.type === "hole") return assert.equal(result, -errno("EINVAL"));
        if (page.type === "ram") return assert.equal(result, 0);
        assert.equal(result, -errno("EAGAIN"));
        return this.expectRequest(page, undefined);
      }
      case "touch":
        return this.touch(step.gfn, step.vcpu, step.byte);
      case "map":
        return this.map(step.gfn);
      case "unmap": {
        const one = this.held.pop();
        if (one === undefined) return;
        one.mapping[Symbol.dispose]();
        one.page.maps--;
        return;
      }
      case "logDirty":
        if (this.logging) xen.logDirtyOff(domid);
        else xen.logDirtyEnable(domid);
        this.logging = !this.logging;
        return;
      case "serve":
        return this.serve();
    }
  }

  touch(gfn: number, index: 0 | 1, byte: number | undefined): void {
    const { domain, vcpu, second } = this.parts;
    const page = this.page(gfn);
    if (this.requests >= 8) return;
    const access = domain.access(index === 0 ? vcpu : second, gfn, byte === undefined ? "read" : "write");
    if (this.paused[index] === true) return assert.equal(access, "wait");
    if (page.type === "hole") return assert.equal(access, "nothing");
    if (page.type === "ram") {
      assert(typeof access === "object");
      assert.equal(access.frame.bytes[0], page.byte);
      if (byte === undefined) return;
      access.frame.write(0, Uint8Array.of(byte));
      page.byte = byte;
      return;
    }
    assert.equal(access, "wait");
    // On its way in already: the vCPU retries, and no request is made.
    if (page.type !== "in") this.expectRequest(page, index);
  }

  map(gfn: number): void {
    const { machine, domid } = this.parts;
    const page = this.page(gfn);
    if (this.requests >= 8 && page.type === "paged") return;
    const mapping = machine.map(domid, gfns(gfn, 1), { write: false });
    if (page.byte !== undefined) {
      assert.equal(mapping.errors[0], 0);
      assert.equal(mapping.bytes[0], page.byte);
      page.maps++;
      this.held.push({ gfn, page, mapping });
      return;
    }
    assert.equal(mapping.errors[0], page.type === "hole" ? -errno("EINVAL") : ENOENT);
    mapping[Symbol.dispose]();
    if (page.type === "paged") this.expectRequest(page, undefined);
  }

  serve(): void {
    const { ring, channels, port, xen, domid } = this.parts;
    const requests = ring.takeRequests();
    assert.equal(requests.length, this.requests);
    for (const request of requests) {
      xen.prep(domid, request.gfn, this.content.address);
      const page = this.page(Number(request.gfn));
      if (page.type === "in" || page.type === "paged") {
        page.type = "ram";
        page.byte ??= 0x77;
      }
      ring.respond(request);
    }
    channels.notify(port);
    this.requests = 0;
    this.paused.fill(false);
  }

  check(): void {
    const { domain, sim, vcpu, second } = this.parts;
    const NAMES = {
      hole: ["hole"],
      ram: ["ram_rw", "ram_logdirty"],
      out: ["ram_paging_out"],
      paged: ["ram_paged"],
      in: ["ram_paging_in"],
    };
    for (const [gfn, page] of this.model.entries()) {
      const entry = domain.memory.p2m.get(gfn);
      assert(NAMES[page.type].includes(entry.type), `gfn ${gfn} is ${entry.type}, and should be ${page.type}`);
      assert.equal(entry.frame?.bytes[0], page.byte);
    }
    const out = this.model.filter(({ type, byte }) => (type === "paged" || type === "in") && byte === undefined).length;
    assert.equal(domain.memory.pagedPages, out);
    const heldOnly = new Set(this.held.map(({ page }) => page)).difference(new Set(this.model)).size;
    // Of the mapped ones that the model lost sight of, each is an orphan (still allocated) or given back (held by the mapping).
    const present = this.model.filter(({ byte }) => byte !== undefined).length + (64 - PAGES) + 1;
    const total = domain.memory.totalPages;
    assert(total >= present + this.orphans && total <= present + this.orphans + heldOnly, `${total} pages`);
    assert.equal(sim.memory.totalPages - sim.memory.freePages, total + domain.memory.p2m.poolPages);
    assert.deepEqual([vcpu.vmEventPauses > 0, second.vmEventPauses > 0], this.paused);
    assert.equal(domain.paging.freeSlots, 8 - this.requests);
  }
}

Deno.test("p2m states change as the model says, and no page or frame is lost", () => {
  fc.assert(
    fc.property(fc.array(action, { minLength: 1, maxLength: 60 }), (actions) => {
      const run = new Run();
      for (const step of actions) {
        run.act(step);
        run.check();
      }
    }),
    { numRuns: 150, seed: 20_261_125 },
  );
});
