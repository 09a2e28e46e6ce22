import assert from "node:assert/strict";
import type { Address, HypercallPort } from "../../hypercall/ports.ts";
import { ArenaFull, PageArena } from "./page_arena.ts";

function port(): HypercallPort & { live: number } {
  let next = 0x1000_0000n;
  const self = {
    live: 0,
    allocate(byteLength: number) {
      self.live++;
      const address = next as Address;
      next += BigInt(byteLength) + 4096n;
      return { address, bytes: new Uint8Array(byteLength), [Symbol.dispose]: () => void self.live-- };
    },
    call: () => -38n,
    deviceModelOp: () => -38,
  };
  return self;
}

Deno.test("page arena: slots are apart, counted, and used again", () => {
  const memory = port();
  using arena = new PageArena(memory, 10_000);
  const slots = Array.from({ length: 600 }, () => arena.take());
  assert.equal(new Set(slots.map((slot) => arena.address(slot))).size, 600);
  slots.forEach((slot, at) => arena.bytes(slot).fill(at & 255));
  slots.forEach((slot, at) => assert.equal(arena.bytes(slot)[4095], at & 255));
  const [first] = slots;
  assert.ok(first !== undefined);
  arena.retain(first);
  arena.release(first);
  assert.equal(arena.pages, 600);
  arena.release(first);
  assert.equal(arena.pages, 599);
  assert.throws(() => arena.release(first), RangeError);
  assert.equal(arena.take(), first);
});

Deno.test("page arena: it is bounded, and gives empty chunks back", () => {
  const memory = port();
  using arena = new PageArena(memory, 1024);
  const slots = Array.from({ length: 1024 }, () => arena.take());
  assert.throws(() => arena.take(), ArenaFull);
  assert.equal(memory.live, 4);
  for (const slot of slots) arena.release(slot);
  assert.equal(arena.pages, 0);
  assert.ok(memory.live <= 2, `${memory.live} chunks are kept`);
  for (let at = 0; at < 1024; at++) arena.take();
  assert.equal(memory.live, 4);
});
