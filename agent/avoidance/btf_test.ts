import assert from "node:assert/strict";
import fc from "fast-check";
import { Btf } from "./btf.ts";
import { BtfBuilder } from "./btf_fake.ts";
import { layoutOf } from "./layout.ts";
import { Refusal, type RefusalReason } from "./refusal.ts";

function refused(work: () => unknown): RefusalReason {
  try {
    work();
  } catch (error) {
    if (error instanceof Refusal) return error.reason;
    throw error;
  }
  return assert.fail("it was not refused");
}

Deno.test("offsets and sizes come through typedefs, qualifiers, arrays and anonymous members", () => {
  const builder = new BtfBuilder();
  const long = builder.int("long", 8);
  const constant = builder.raw(10, 0, long, []);
  const named = builder.typedef("u", constant);
  const table = builder.array(builder.array(named, 3), 5);
  const inner = builder.union("", 16, [["a", long, 0], ["", builder.struct("", 16, [["deep", named, 8]]), 0]]);
  const outer = builder.struct("outer", 200, [["first", long, 0], ["", inner, 16], ["table", table, 40], [
    "next",
    builder.pointer(0),
    32,
  ]]);
  const btf = new Btf(builder.bytes());
  assert.equal(btf.struct("outer"), outer);
  assert.deepEqual(btf.member(outer, "deep"), { byteOffset: 24, type: named });
  assert.equal(btf.member(outer, "table").byteOffset, 40);
  assert.deepEqual(btf.array(btf.member(outer, "table").type).count, 5);
  assert.equal(btf.size(table), 3 * 5 * 8);
  assert.equal(btf.size(btf.member(outer, "next").type), 8);
  assert.equal(btf.size(outer), 200);
  assert.equal(refused(() => btf.struct("inner")), "layout");
  assert.equal(refused(() => btf.member(outer, "absent")), "layout");
  assert.equal(refused(() => btf.array(outer)), "layout");
  assert.equal(refused(() => btf.size(0)), "btf");
});

Deno.test("every kind is stepped over; one that is not known is refused", () => {
  const extras: Record<number, number> = { 1: 1, 3: 3, 14: 1, 17: 1 };
  const elements: Record<number, number> = { 4: 3, 5: 3, 6: 2, 13: 2, 15: 3, 19: 3 };
  const builder = new BtfBuilder();
  for (let kind = 1; kind <= 19; kind++) {
    const vlen = elements[kind] === undefined ? 0 : 2;
    builder.raw(kind, vlen, 4, Array.from({ length: (extras[kind] ?? 0) + vlen * (elements[kind] ?? 0) }, () => 0));
  }
  const last = builder.struct("last", 8, [["x", 1, 0]]);
  assert.equal(new Btf(builder.bytes()).struct("last"), last);
  builder.raw(20, 0, 0, []);
  assert.equal(refused(() => new Btf(builder.bytes())), "btf");
});

Deno.test("bit fields are told from bytes by the kind flag", () => {
  const builder = new BtfBuilder();
  const int = builder.int("int", 4);
  const flags = builder.struct("flags", 4, [["low", int, 0]]);
  const bytes = builder.bytes();
  const words = new Uint32Array(bytes.buffer, 24, 10);
  words[5] = (words[5] ?? 0) | 1 << 31;
  words[9] = 3 << 24 | 16;
  assert.equal(new Btf(bytes).member(flags, "low").byteOffset, 2);
  words[9] = 3 << 24 | 5;
  assert.equal(refused(() => new Btf(bytes).member(flags, "low")), "layout");
});

Deno.test("types that lead in circles are refused", () => {
  const builder = new BtfBuilder();
  const first = builder.typedef("a", 2);
  builder.typedef("b", 1);
  const nested = builder.struct("nested", 8, [["", 3, 0], ["x", first, 0]]);
  const array = builder.array(5, 2);
  assert.deepEqual([first, nested, array], [1, 3, 4]);
  builder.array(4, 2);
  const btf = new Btf(builder.bytes());
  assert.equal(refused(() => btf.size(first)), "btf");
  assert.equal(btf.member(nested, "x").byteOffset, 0);
  assert.equal(refused(() => btf.size(array)), "layout");
  const wide = new BtfBuilder();
  const many = Array.from({ length: 60_000 }, () => ["", 1, 0] as const);
  const loop = wide.struct("loop", 8, [...many, ["x", 1, 0]]);
  assert.equal(refused(() => new Btf(wide.bytes()).member(loop, "absent")), "layout");
  const named = new BtfBuilder();
  named.struct("loop", 8, many);
  named.struct("absent", 8, [["absent", 1, 0]]);
  assert.equal(refused(() => new Btf(named.bytes()).member(1, "absent")), "btf");
});

Deno.test("damaged BTF is refused or gives some layout, and nothing else happens", () => {
  const builder = new BtfBuilder();
  const long = builder.int("long", 8);
  const head = builder.struct("list_head", 16, [["next", builder.pointer(0), 0], ["prev", builder.pointer(0), 8]]);
  builder.struct("page", 64, [["lru", head, 8], ["private", long, 40]]);
  const area = builder.struct("free_area", 104, [["free_list", builder.array(head, 6), 0], ["nr_free", long, 96]]);
  const zone = builder.struct("zone", 1264, [
    ["name", builder.pointer(0), 0],
    ["zone_start_pfn", long, 8],
    ["spanned_pages", long, 16],
    ["free_area", builder.array(area, 11), 64],
  ]);
  const references = builder.struct("zonelist", 4096, [["_zonerefs", builder.array(head, 4 * 64 + 1), 0]]);
  builder.struct("pglist_data", 20_000, [
    ["node_zones", builder.array(zone, 4), 0],
    ["node_zonelists", builder.array(references, 2), 5056],
    ["node_id", long, 19_000],
  ]);
  const sound = builder.bytes();
  assert.equal(layoutOf(new Btf(sound)).nodes, 64);
  assert.equal(layoutOf(new Btf(sound)).page.order, 40);
  const mutation = fc.record({
    at: fc.nat(sound.length - 1),
    value: fc.oneof(fc.nat(255), fc.constantFrom(0, 1, 255)),
  });
  const outcomes = { found: 0, refused: 0 };
  fc.assert(
    fc.property(fc.array(mutation, { minLength: 1, maxLength: 5 }), fc.nat(sound.length), (mutations, cut) => {
      const bytes = sound.slice(0, cut % 4 === 0 ? cut : sound.length);
      for (const { at, value } of mutations) if (at < bytes.length) bytes[at] = value;
      try {
        layoutOf(new Btf(bytes));
        outcomes.found++;
      } catch (error) {
        assert.ok(error instanceof Refusal, String(error));
        outcomes.refused++;
      }
    }),
    { numRuns: 3000 },
  );
  assert.ok(outcomes.found > 100 && outcomes.refused > 100);
});

/** Read by `cat`: Deno lets only a program with every permission read below /sys itself. */
function runningKernelBtf(): Uint8Array<ArrayBuffer> | undefined {
  const { success, stdout } = new Deno.Command("cat", { args: ["/sys/kernel/btf/vmlinux"], stderr: "null" })
    .outputSync();
  return success ? stdout : undefined;
}

const running = runningKernelBtf();

Deno.test({
  name: "a real kernel's BTF gives a sensible layout",
  ignore: running === undefined,
  fn() {
    const layout = layoutOf(new Btf(running ?? new Uint8Array()));
    assert.equal(layout.page.bytes, 64);
    assert.equal(layout.page.list, 8);
    assert.equal(layout.page.order, 40);
    assert.ok(layout.orders >= 11 && layout.zones >= 2 && layout.migrateTypes >= 4);
    assert.equal(layout.freeArea.lists, 0);
    assert.equal(layout.freeArea.count, 16 * layout.migrateTypes);
    assert.ok(Number.isInteger(Math.log2(layout.nodes)), `${layout.nodes} nodes`);
  },
});
