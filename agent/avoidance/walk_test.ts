import assert from "node:assert/strict";
import fc from "fast-check";
import { type FakeKernel, type FakeKernelOptions, type FreeBlock, TYPES } from "./kernel_fake.ts";
import type { RefusalReason } from "./refusal.ts";
import { walkFreePages } from "./walk.ts";
import { BLOCKS, fake } from "./walk_fake.ts";

/** The indexes of the blocks' pages, counted by hand: the fake's hole is 0x9f..0xff. */
function indexesOf(blocks: readonly FreeBlock[]): number[] {
  return blocks.flatMap(({ pfn, order }) => Array.from({ length: 2 ** order }, (_, at) => pfn + at))
    .map((pfn) => pfn < 0x9f ? pfn : pfn - 0x61).sort((a, b) => a - b);
}

for (const levels of [4, 5] as const) {
  for (const leaf of [1, 512, 262144] as const) {
    Deno.test(`all free blocks are found: ${levels} levels, entries of ${leaf} pages`, () => {
      const { kernel, query } = fake({ levels, leaf });
      const result = walkFreePages(kernel, query);
      assert.ok(result.ok, result.ok ? "" : `${result.reason}: ${result.detail}`);
      const found = Array.from({ length: kernel.map.pages }, (_, index) => index).filter((index) =>
        result.free.has(index)
      );
      assert.deepEqual(found, indexesOf(BLOCKS));
      assert.equal(result.free.count, found.length);
      assert.deepEqual(result.zones.map(({ name, blocks, pages }) => [name, blocks, pages]), [
        ["Normal", 2, 9],
        ["Normal", 6, 1 + 1 + 2 + 512 + 1 + 1],
        ["Normal", 1, 256],
      ]);
      assert.equal(result.framesRead, kernel.asked.size);
    });
  }
}

Deno.test("several nodes, and a kernel without NUMA", () => {
  const two = [...BLOCKS, { node: 2, zone: 1, order: 2, type: 0, pfn: 0x308 }];
  const { kernel, query } = fake({ blocks: two });
  const result = walkFreePages(kernel, query);
  assert.ok(result.ok);
  assert.deepEqual(result.zones.map(({ node }) => node), [0, 0, 0, 2]);
  assert.equal(result.free.count, indexesOf(two).length);

  const one = fake({ numa: false });
  const alone = walkFreePages(one.kernel, one.query);
  assert.ok(alone.ok);
  assert.equal(alone.free.count, indexesOf(BLOCKS).length);
});

Deno.test("with page-table isolation the user's CR3 leads to the kernel's tables", () => {
  const { kernel, query } = fake();
  // The kernel's table is frame 1: move it to an even frame, with an empty one after it.
  kernel.image.copyWithin(0xf0 * 4096, 4096, 2 * 4096);
  kernel.image.fill(0, 0xf1 * 4096, 0xf2 * 4096);
  const result = walkFreePages(kernel, { ...query, cr3: 0xf1000n });
  assert.ok(result.ok);
});

/** What becomes of the walk when the image is changed so. */
function spoilt(change: (kernel: FakeKernel) => void, options: Partial<FakeKernelOptions> = {}): RefusalReason | "ok" {
  const { kernel, query } = fake({ ...options });
  change(kernel);
  const result = walkFreePages(kernel, query);
  return result.ok ? "ok" : result.reason;
}

Deno.test("each inconsistency is refused for its own reason", () => {
  const base = (kernel: FakeKernel) => kernel.view.getBigUint64(kernel.headAt(0, 1, 9, 1), true) - BigInt(0x400 * 64);
  const cases: [RefusalReason, string, (kernel: FakeKernel) => void][] = [
    ["count", "nr_free is one more", (k) => k.u64(k.countAt(0, 1, 0), 6n)],
    ["count", "nr_free is one less", (k) => k.u64(k.countAt(0, 1, 0), 3n)],
    ["count", "nr_free is huge", (k) => k.u64(k.countAt(0, 1, 0), 1n << 63n)],
    ["links", "a cycle of one", (k) => k.u64(k.linkAt(0x301), base(k) + BigInt(0x301 * 64))],
    ["links", "a wrong back link", (k) => k.u64(k.linkAt(0x301) + 8, base(k))],
    ["links", "a head that ends elsewhere", (k) => k.u64(k.headAt(0, 1, 0, 5) + 8, base(k))],
    ["foreign-pointer", "a null link", (k) => k.u64(k.linkAt(0x301), 0n)],
    ["foreign-pointer", "a user's address", (k) => k.u64(k.linkAt(0x301), 0x400000n)],
    ["foreign-pointer", "an address before the array", (k) => k.u64(k.linkAt(0x301), base(k) - 64n)],
    ["foreign-pointer", "an address after RAM", (k) => k.u64(k.linkAt(0x301), base(k) + BigInt(k.frames * 64))],
    ["foreign-pointer", "the middle of a page struct", (k) => k.u64(k.linkAt(0x301), base(k) + BigInt(0x302 * 64 + 8))],
    ["foreign-pointer", "the last address", (k) => k.u64(k.linkAt(0x301), (1n << 64n) - 8n)],
    ["block", "a block of another order", (k) => k.u64(k.orderAt(0x301), 1n)],
    ["foreign-pointer", "a zone that ends before its blocks", (k) => k.u64(k.spanAt(0, 1), 0x301n)],
    ["count", "a zone without end", (k) => k.u64(k.spanAt(0, 1), (1n << 64n) - 1n)],
    ["zone", "a node that calls itself another", (k) => k.view.setUint32(k.nodeIdAt(0), 1, true)],
    ["unmapped", "no page tables", (k) => k.image.fill(0, 4096, 8192)],
  ];
  for (const [reason, name, change] of cases) assert.equal(spoilt(change), reason, name);
  assert.equal(spoilt(() => {}), "ok");
});

Deno.test("blocks that overlap, lie askew or reach into the hole are refused", () => {
  const refusal = (blocks: readonly FreeBlock[]) => {
    const { kernel, query } = fake({ blocks });
    const result = walkFreePages(kernel, query);
    return result.ok ? "ok" : result.reason;
  };
  const block = (pfn: number, order: number): FreeBlock => ({ node: 0, zone: 1, order, type: 0, pfn });
  assert.equal(refusal([block(0x308, 3), block(0x30c, 2)]), "duplicate");
  assert.equal(refusal([block(0x30c, 3)]), "block");
  assert.equal(refusal([block(0x98, 3)]), "foreign-pointer");
  assert.equal(refusal([block(0xa0, 0)]), "foreign-pointer");
  assert.equal(refusal([block(0x98, 2)]), "ok");
});

Deno.test("a list that leads into another is refused", () => {
  // 0x301 is of one list, 0x302 of another of the same order: with its links set right, only the pages tell.
  const reason = spoilt((kernel) => {
    kernel.u64(kernel.countAt(0, 1, 0), 5n);
    const target = kernel.view.getBigUint64(kernel.headAt(0, 1, 0, 0), true);
    kernel.u64(kernel.headAt(0, 1, 0, 3), target);
  });
  assert.ok(reason === "links" || reason === "count");
});

Deno.test("a poisoning kernel is recognised by its key, or else by its pages", () => {
  const { kernel, query } = fake();
  const at = 0x440 * 4096 + 1024;
  const symbols = new Map([...query.symbols, ["_page_poisoning_enabled", 0xffffffff82000000n + 1024n] as const]);
  assert.equal(walkFreePages(kernel, { ...query, symbols }).ok, true);
  kernel.view.setUint32(at, 1, true);
  const keyed = walkFreePages(kernel, { ...query, symbols });
  assert.equal(keyed.ok ? "ok" : keyed.reason, "poisoning");

  kernel.image.fill(0xaa, 0x11 * 4096, 0x12 * 4096);
  const seen = walkFreePages(kernel, query);
  assert.equal(seen.ok ? "ok" : seen.reason, "poisoning");
});

Deno.test("what the guest did not report is told; a kernel that is not moved needs no vmemmap_base", () => {
  const { kernel, query } = fake();
  const none = walkFreePages(kernel, { ...query, symbols: new Map() });
  assert.equal(none.ok ? "ok" : none.reason, "symbols");
  const unmoved = new Map([...query.symbols].filter(([name]) => name !== "vmemmap_base"));
  const other = walkFreePages(kernel, { ...query, symbols: unmoved });
  assert.equal(other.ok ? "ok" : other.reason, "foreign-pointer");
});

Deno.test("the budgets of frames and time end a walk", () => {
  const { kernel, query } = fake();
  const whole = walkFreePages(kernel, query);
  assert.ok(whole.ok);
  for (let frames = 0; frames < whole.framesRead; frames++) {
    kernel.asked.clear();
    const result = walkFreePages(kernel, { ...query, budget: { frames } });
    assert.equal(result.ok ? "ok" : result.reason, "page-budget");
    assert.ok(kernel.asked.size <= frames);
  }
  let looks = 0;
  const late = walkFreePages(kernel, { ...query, budget: { frames: 4096, expired: () => ++looks > 2 } });
  assert.equal(late.ok ? "ok" : late.reason, "time-budget");
});

Deno.test("frames that cannot be read are refused, except where only a sample was wanted", () => {
  const { kernel, query } = fake();
  const without = (missing: bigint) =>
    walkFreePages({ read: (gfn) => gfn === missing ? undefined : kernel.read(gfn) }, query);
  const structs = without(BigInt(kernel.structsFrame + 0x301 * 64 / 4096 | 0));
  assert.equal(structs.ok ? "ok" : structs.reason, "unreadable");
  assert.ok(without(0x11n).ok);
});

Deno.test("random free lists are told exactly", () => {
  const chunk = fc.record({ zone: fc.nat(2), type: fc.nat(TYPES - 1), order: fc.nat(4), skip: fc.boolean() });
  fc.assert(
    fc.property(
      fc.array(chunk, { minLength: 1, maxLength: 90 }),
      fc.constantFrom(4, 5),
      fc.constantFrom(1, 512, 262144),
      (chunks, levels, leaf) => {
        // Each chunk has sixteen pages of its own, so that blocks never meet.
        const blocks = chunks.flatMap(({ zone, type, order, skip }, at) =>
          skip ? [] : [{ node: 0, zone, type, order, pfn: 0x100 + 16 * at }]
        );
        if (blocks.length === 0) return;
        const { kernel, query } = fake({
          blocks,
          levels: levels === 5 ? 5 : 4,
          leaf: leaf === 1 ? 1 : leaf === 512 ? 512 : 262144,
        });
        const result = walkFreePages(kernel, query);
        assert.ok(result.ok, result.ok ? "" : result.detail);
        const found = [...result.free.runs()].flatMap(({ first, pages }) =>
          Array.from({ length: pages }, (_, at) => first + at)
        );
        assert.deepEqual(found, indexesOf(blocks));
      },
    ),
    { numRuns: 60 },
  );
});
