/** Guests that lie: changed memory, symbols and registers. */
import assert from "node:assert/strict";
import fc from "fast-check";
import { KernelLayouts, readLayout } from "./layout.ts";
import { REFUSAL_REASONS } from "./refusal.ts";
import { walkFreePages } from "./walk.ts";
import { fake } from "./walk_fake.ts";

Deno.test("whatever words are changed, the walk ends, stays within its bounds, and frees no page outside RAM", () => {
  const pristine = fake();
  const { kernel, query } = pristine;
  const copy = kernel.image.slice();
  const nodes = kernel.zoneAt(0, 0) - 64;
  const regions = [
    { at: 4096, bytes: 0x40 * 4096 }, // page tables
    { at: 0x440 * 4096, bytes: 4096 }, // variables and the array of nodes
    { at: nodes, bytes: 2 * 4096 }, // the node
    { at: kernel.linkAt(0) - 16, bytes: kernel.frames * 64 }, // page structs
  ];
  /** Places that the walk reads: a change elsewhere proves nothing. */
  const used = regions.flatMap(({ at, bytes }) =>
    Array.from({ length: bytes / 8 }, (_, word) => at + 8 * word).filter((place) =>
      kernel.view.getBigUint64(place, true) !== 0n
    )
  );
  const vmemmap = kernel.view.getBigUint64(0x440 * 4096 + 8, true);
  const value = fc.oneof(
    fc.bigInt({ min: 0n, max: (1n << 64n) - 1n }),
    fc.constantFrom(0n, 1n, (1n << 64n) - 1n, 1n << 63n),
    fc.nat(kernel.frames * 64).map((at) => vmemmap + BigInt(at)),
    fc.nat(kernel.frames + 99).map((frame) => BigInt(frame * 4096) | 0x63n),
    fc.nat(kernel.frames + 99).map((frame) => BigInt(frame * 4096) | 0xe3n),
    fc.constantFrom(...used.map((place) => kernel.view.getBigUint64(place, true))),
  );
  const change = fc.record({ place: fc.constantFrom(...used), value });
  const seen = new Set<string>();
  fc.assert(
    fc.property(fc.array(change, { minLength: 1, maxLength: 4 }), (changes) => {
      kernel.image.set(copy);
      kernel.asked.clear();
      for (const { place, value } of changes) kernel.u64(place, value);
      const frames = 600;
      const result = walkFreePages(kernel, { ...query, budget: { frames } });
      assert.ok(kernel.asked.size <= frames);
      for (const gfn of kernel.asked) assert.ok(gfn >= 0n && gfn < 1n << 40n);
      if (!result.ok) {
        assert.ok(REFUSAL_REASONS.includes(result.reason));
        seen.add(result.reason);
        return;
      }
      seen.add("ok");
      let pages = 0;
      for (const run of result.free.runs()) {
        assert.ok(run.first >= 0 && run.first + run.pages <= kernel.map.pages);
        pages += run.pages;
      }
      assert.equal(pages, result.free.count);
    }),
    { numRuns: 1500 },
  );
  // The mutations reach the checks, and not only the first of them.
  for (const reason of ["count", "links", "foreign-pointer", "unmapped", "unreadable"]) {
    assert.ok(seen.has(reason), reason);
  }
});

Deno.test("whatever the guest reports as symbols and registers, the walk ends within its bounds", () => {
  const { kernel, query } = fake();
  const word = fc.bigInt({ min: 0n, max: (1n << 64n) - 1n });
  const known = fc.constantFrom(...kernel.symbols.values(), kernel.cr3, kernel.cr4);
  const near = fc.tuple(known, fc.integer({ min: -4096, max: 4096 })).map(([at, by]) =>
    BigInt.asUintN(64, at + BigInt(by))
  );
  const any = fc.oneof(word, known, near);
  const names = ["__start_BTF", "__stop_BTF", "node_data", "vmemmap_base", "_page_poisoning_enabled"];
  fc.assert(
    fc.property(any, any, fc.array(any, { minLength: 5, maxLength: 5 }), (cr3, cr4, values) => {
      kernel.asked.clear();
      const symbols = new Map(names.map((name, at) => [name, values[at] ?? 0n]));
      const budget = { frames: 200 };
      const tries = [{ cr3, cr4 }, { cr3: kernel.cr3, cr4: kernel.cr4 }];
      for (const registers of tries) {
        const walked = walkFreePages(kernel, { ...query, ...registers, symbols, budget });
        if (walked.ok) assert.ok(walked.free.count <= kernel.map.pages);
        readLayout(kernel, { ...registers, symbols, budget }, new KernelLayouts());
      }
      assert.ok(kernel.asked.size <= 4 * budget.frames);
    }),
    { numRuns: 500 },
  );
});
