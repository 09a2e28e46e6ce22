import assert from "node:assert/strict";
import fc from "fast-check";
import { PageSet, RamIndex } from "./page_set.ts";

Deno.test("runs go in once, and come out as they are", () => {
  const run = fc.record({ first: fc.nat(180), pages: fc.integer({ min: 1, max: 40 }) });
  fc.assert(fc.property(fc.array(run, { maxLength: 20 }), (runs) => {
    const set = new PageSet(220);
    const model = new Set<number>();
    for (const { first, pages } of runs) {
      const indexes = Array.from({ length: pages }, (_, at) => first + at);
      const fresh = indexes.every((index) => !model.has(index));
      if (!fresh) {
        assert.equal(set.addRun(first, pages), false);
        return;
      }
      assert.equal(set.addRun(first, pages), true);
      for (const index of indexes) model.add(index);
    }
    assert.equal(set.count, model.size);
    for (let index = -1; index <= 221; index++) assert.equal(set.has(index), model.has(index));
    const out = [...set.runs()];
    assert.deepEqual(
      out.flatMap(({ first, pages }) => Array.from({ length: pages }, (_, at) => first + at)),
      [...model].sort((a, b) => a - b),
    );
    out.forEach(({ first }, at) => at > 0 && assert.ok(first > (out[at - 1]?.first ?? 0) + (out[at - 1]?.pages ?? 0)));
  }));
});

Deno.test("a run beyond the end is a fault of the caller", () => {
  assert.throws(() => new PageSet(10).addRun(8, 3), RangeError);
  assert.throws(() => new PageSet(10).addRun(-1, 1), RangeError);
});

Deno.test("frame numbers become indexes within RAM only; runs that touch are one", () => {
  const index = new RamIndex({
    ranges: [{ first: 0n, pages: 0x9f }, { first: 0x100n, pages: 0x10 }, { first: 0x110n, pages: 0x10 }, {
      first: 1n << 20n,
      pages: 4,
    }],
    pages: 0x9f + 0x24,
  });
  assert.equal(index.indexOf(0, 1), 0);
  assert.equal(index.indexOf(0x9e, 1), 0x9e);
  assert.equal(index.indexOf(0x9e, 2), -1);
  assert.equal(index.indexOf(0xa0, 1), -1);
  assert.equal(index.indexOf(0x100, 0x20), 0x9f);
  assert.equal(index.indexOf(0x100, 0x21), -1);
  assert.equal(index.indexOf(0x11f, 1), 0x9f + 0x1f);
  assert.equal(index.indexOf((1 << 20) + 3, 1), 0x9f + 0x23);
  assert.equal(index.indexOf((1 << 20) + 4, 1), -1);
  assert.equal(index.end, (1 << 20) + 4);
  assert.equal(new RamIndex({ ranges: [], pages: 0 }).indexOf(0, 1), -1);
  assert.throws(() => new RamIndex({ ranges: [{ first: 1n << 40n, pages: 1 }], pages: 1 }), RangeError);
});
