import assert from "node:assert/strict";
import fc from "fast-check";
import type { Gfn } from "../../hypercall/ports.ts";
import { MemoryMap } from "./memory_map.ts";

const range = (first: number | bigint, pages: number) => ({ first: BigInt(first) as Gfn, pages });

Deno.test("memory map: indexes are dense over holes and beyond 4 GiB", () => {
  const map = new MemoryMap([range(0, 0xa0), range(0x100, 0x100), range(1n << 20n, 5)]);
  assert.equal(map.pages, 0xa0 + 0x100 + 5);
  assert.equal(map.gfnAt(0xa0), 0x100n);
  assert.equal(map.gfnAt(map.pages - 1), (1n << 20n) + 4n);
  assert.equal(map.indexOf(0xa0n), -1);
  assert.equal(map.indexOf(1n << 20n), 0x1a0);
  assert.equal(map.indexOf((1n << 20n) + 5n), -1);
  assert.throws(() => map.gfnAt(map.pages), RangeError);
  assert.deepEqual([...map.gfnsOf(Uint32Array.of(0, 0x1a0))], [0n, 1n << 20n]);
});

Deno.test("memory map: runs that overlap, are empty or too many are refused", () => {
  assert.throws(() => new MemoryMap([range(0, 2), range(1, 2)]), RangeError);
  assert.throws(() => new MemoryMap([range(5, 0)]), RangeError);
  assert.throws(() => new MemoryMap([range(5, 1.5)]), RangeError);
  assert.throws(() => new MemoryMap([range(0, 1 << 27)]), RangeError);
  assert.throws(() => new MemoryMap([range((1n << 52n) - 1n, 2)]), RangeError);
  assert.equal(new MemoryMap([]).indexOf(0n), -1);
});

Deno.test("memory map: gfn and index are each other's inverse", () => {
  const runs = fc.array(fc.tuple(fc.integer({ min: 0, max: 50 }), fc.integer({ min: 1, max: 50 })), { maxLength: 20 });
  fc.assert(fc.property(runs, (gaps) => {
    let at = 0;
    const map = new MemoryMap(gaps.map(([gap, pages]) => {
      const first = at + gap;
      at = first + pages;
      return range(first, pages);
    }));
    const seen = new Set<bigint>();
    for (let index = 0; index < map.pages; index++) {
      const gfn = map.gfnAt(index);
      assert.equal(map.indexOf(gfn), index);
      seen.add(gfn);
    }
    for (let gfn = 0n; gfn < BigInt(at + 2); gfn++) assert.equal(map.indexOf(gfn) >= 0, seen.has(gfn));
  }));
});
