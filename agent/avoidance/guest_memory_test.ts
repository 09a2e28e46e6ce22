import assert from "node:assert/strict";
import type { Address, Domid, ForeignMapping, ForeignMemoryPort, Gfn } from "../../hypercall/ports.ts";
import { ForeignGuestMemory } from "./guest_memory.ts";

const DOMID = 7 as Domid;

/** A domain of `frames` frames whose bytes are its number; odd hundreds are paged out. */
class FakeForeignMemory implements ForeignMemoryPort {
  readonly calls: bigint[][] = [];
  open = 0;

  constructor(readonly frames: number) {}

  map(domid: Domid, gfns: BigUint64Array, options: { readonly write: boolean }): ForeignMapping {
    assert.equal(domid, DOMID);
    assert.equal(options.write, false);
    this.calls.push([...gfns]);
    this.open++;
    const bytes = new Uint8Array(gfns.length * 4096);
    const errors = Int32Array.from(gfns, (gfn) => gfn >= BigInt(this.frames) ? -22 : gfn / 100n % 2n === 1n ? -2 : 0);
    gfns.forEach((gfn, at) => bytes.fill(Number(gfn % 251n), at * 4096, (at + 1) * 4096));
    return { address: 0n as Address, bytes, errors, [Symbol.dispose]: () => void this.open-- };
  }

  mapResource(): ForeignMapping {
    throw new Error("not of this port's use");
  }
}

Deno.test("frames are mapped in batches, once, and released together", () => {
  const port = new FakeForeignMemory(1000);
  {
    using memory = new ForeignGuestMemory(port, DOMID, { maxFrames: 1000 });
    for (const gfn of [5n, 6n, 63n, 0n]) assert.equal(memory.read(gfn as Gfn)?.[4095], Number(gfn));
    assert.equal(port.calls.length, 1);
    assert.equal(memory.read(64n as Gfn)?.length, 4096);
    assert.equal(port.calls.length, 2);
    assert.deepEqual(port.calls[1], Array.from({ length: 64 }, (_, at) => BigInt(64 + at)));
    assert.equal(port.open, 2);
  }
  assert.equal(port.open, 0);
});

Deno.test("a frame that is not there reads as nothing, and is asked for once", () => {
  const port = new FakeForeignMemory(1000);
  using memory = new ForeignGuestMemory(port, DOMID, { maxFrames: 1000 });
  for (const gfn of [110n, 111n, 5000n, 5001n]) assert.equal(memory.read(gfn as Gfn), undefined);
  assert.equal(port.calls.length, 2);
});

Deno.test("no more frames are mapped than allowed", () => {
  const port = new FakeForeignMemory(1 << 20);
  using memory = new ForeignGuestMemory(port, DOMID, { maxFrames: 128 });
  const found = [0n, 1000n * 64n, 2000n * 64n, 3000n * 64n].map((gfn) => memory.read(gfn as Gfn) !== undefined);
  assert.deepEqual(found, [true, true, false, false]);
  assert.equal(memory.mappedFrames, 128);
  assert.equal(port.calls.length, 2);
});

Deno.test("frames that are known to be absent are never touched", () => {
  const port = new FakeForeignMemory(1000);
  using memory = new ForeignGuestMemory(port, DOMID, { maxFrames: 1000, isPresent: (gfn) => gfn % 2n === 0n });
  assert.equal(memory.read(9n as Gfn), undefined);
  assert.equal(port.calls.length, 0);
  assert.equal(memory.read(8n as Gfn)?.[0], 8);
  assert.deepEqual(port.calls, [Array.from({ length: 32 }, (_, at) => BigInt(2 * at))]);
});
