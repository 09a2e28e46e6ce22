import assert from "node:assert/strict";
import { BtfBuilder } from "./btf_fake.ts";
import { FakeKernel, NODES, ORDERS, TYPES, ZONES } from "./kernel_fake.ts";
import { KernelLayouts, readLayout } from "./layout.ts";
import { BLOCKS, fake } from "./walk_fake.ts";

const query = (kernel: FakeKernel) => ({
  cr3: kernel.cr3,
  cr4: kernel.cr4,
  symbols: kernel.symbols,
  budget: { frames: 4096 },
});

Deno.test("the layout is the one that the BTF describes", () => {
  const { kernel } = fake({ moreTypes: 2000 });
  const read = readLayout(kernel, query(kernel), new KernelLayouts());
  assert.ok(read.ok);
  const { layout } = read;
  assert.deepEqual([layout.zones, layout.orders, layout.migrateTypes, layout.nodes], [ZONES, ORDERS, TYPES, NODES]);
  const node = kernel.zoneAt(0, 0) - layout.node.zones;
  assert.equal(node + layout.node.id, kernel.nodeIdAt(0));
  const zone = node + layout.node.zones + 2 * layout.zone.bytes;
  assert.equal(zone, kernel.zoneAt(0, 2));
  assert.equal(zone + layout.zone.spannedPages, kernel.spanAt(0, 2));
  const area = zone + layout.zone.freeAreas + 3 * layout.freeArea.bytes;
  assert.equal(area + layout.freeArea.count, kernel.countAt(0, 2, 3));
  assert.equal(area + layout.freeArea.lists + 4 * 16, kernel.headAt(0, 2, 3, 4));
  assert.equal(layout.page.list, kernel.linkAt(9) % layout.page.bytes);
  assert.equal(layout.page.order, kernel.orderAt(9) % layout.page.bytes);
});

Deno.test("a kernel is parsed once; another one, by any byte, is another", () => {
  const layouts = new KernelLayouts();
  const { kernel } = fake();
  const first = layouts.of(kernel.btf);
  assert.equal(layouts.of(kernel.btf.slice()), first);
  const other = kernel.btf.slice();
  // The header's flags, of which nobody makes use.
  other[3] = 1;
  assert.notEqual(layouts.of(other), first);
  assert.equal(layouts.size, 2);
});

Deno.test("the cache is bounded and drops what was used longest ago", () => {
  const layouts = new KernelLayouts();
  const { kernel } = fake();
  const first = layouts.of(kernel.btf);
  for (let at = 1; at <= 40; at++) {
    layouts.of(new FakeKernel({ blocks: BLOCKS, moreTypes: at }).btf);
    assert.equal(layouts.of(kernel.btf), first);
  }
  assert.equal(layouts.size, 32);
});

Deno.test("a section of a wrong size, and one that is not mapped, are refused", () => {
  const { kernel } = fake();
  const start = kernel.symbols.get("__start_BTF") ?? 0n;
  const reason = (changes: [string, bigint][]) => {
    const symbols = new Map([...kernel.symbols, ...changes]);
    const read = readLayout(kernel, { ...query(kernel), symbols }, new KernelLayouts());
    return read.ok ? "ok" : read.reason;
  };
  assert.equal(reason([]), "ok");
  assert.equal(reason([["__stop_BTF", start]]), "btf");
  assert.equal(reason([["__stop_BTF", start + (1n << 25n)]]), "btf");
  assert.equal(reason([["__stop_BTF", start + (1n << 20n)]]), "unmapped");
  assert.equal(reason([["__start_BTF", 0n], ["__stop_BTF", 4096n]]), "foreign-pointer");
  kernel.image.fill(0, (0x441) * 4096, (0x441) * 4096 + 64);
  assert.equal(reason([]), "btf");
});

Deno.test("structs that are not as expected are refused", () => {
  const builder = new BtfBuilder();
  builder.struct("pglist_data", 64, [["node_zones", builder.int("int", 4), 0]]);
  assert.throws(() => new KernelLayouts().of(builder.bytes()), { name: "Refusal", reason: "layout" });
});
