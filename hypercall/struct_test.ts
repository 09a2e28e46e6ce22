import { deepEqual, equal, ok, throws } from "node:assert/strict";
import { array, bytes, struct } from "./struct.ts";

const Inner = struct("inner", { tag: "u8", count: "u32" });
const Outer = struct("outer", {
  op: "u8",
  domain: "u16",
  value: "u64",
  signed: "i32",
  handle: bytes(5),
  words: array("u16", 3),
  inner: Inner,
  list: array(Inner, 2),
  last: "i64",
});

Deno.test("layout follows C's padding rules", () => {
  equal(Inner.size, 8);
  equal(Inner.offsets.count, 4);
  deepEqual(Outer.offsets, {
    op: 0,
    domain: 2,
    value: 8,
    signed: 16,
    handle: 20,
    words: 26,
    inner: 32,
    list: 40,
    last: 56,
  });
  equal(Outer.size, 64);
  equal(Outer.alignment, 8);
});

Deno.test("a union shown as bytes carries its alignment", () => {
  const Envelope = struct("envelope", { cmd: "u32", domain: "u16", payload: bytes(128, 8) });
  equal(Envelope.offsets.payload, 8);
  equal(Envelope.size, 136);
});

Deno.test("decode gives back what encode took, and zero for what it was not given", () => {
  const encoded = Outer.encode({
    op: 255,
    value: 0xffff_ffff_ffff_ffffn,
    signed: -1,
    handle: Uint8Array.of(1, 2),
    words: [7, 8],
    inner: { count: 0xdead_beef },
    list: [{ tag: 1 }, { tag: 2, count: 3 }],
    last: -(1n << 63n),
  });
  deepEqual(Outer.decode(encoded), {
    op: 255,
    domain: 0,
    value: 0xffff_ffff_ffff_ffffn,
    signed: -1,
    handle: Uint8Array.of(1, 2, 0, 0, 0),
    words: [7, 8, 0],
    inner: { tag: 0, count: 0xdead_beef },
    list: [{ tag: 1, count: 0 }, { tag: 2, count: 3 }],
    last: -(1n << 63n),
  });
  deepEqual([...encoded.subarray(8, 16)], Array(8).fill(255));
});

Deno.test("encodeInto overwrites the padding and nothing beyond the struct", () => {
  const target = new Uint8Array(Inner.size + 2).fill(0xaa);
  Inner.encodeInto({ tag: 1, count: 2 }, target, 1);
  deepEqual([...target], [0xaa, 1, 0, 0, 0, 2, 0, 0, 0, 0xaa]);
});

Deno.test("a view reads and writes the bytes themselves, nested ones too", () => {
  const memory = new Uint8Array(Outer.size + 8);
  const view = Outer.view(memory, 8);
  view.domain = 0x1234;
  view.inner.count = 5;
  view.handle.set([9], 4);
  view.words = [1, 2, 3];
  const second = view.list[1];
  ok(second);
  second.tag = 77;
  view.last = -2n;
  deepEqual([...memory.subarray(10, 12)], [0x34, 0x12]);
  const value = Outer.decode(memory, 8);
  equal(value.inner.count, 5);
  equal(value.handle[4], 9);
  deepEqual(value.words, [1, 2, 3]);
  equal(value.list[1]?.tag, 77);
  equal(value.last, -2n);
  deepEqual(Object.keys(Object.getPrototypeOf(view)), Object.keys(Outer.fields));
});

Deno.test("a value that does not fit is refused by name", () => {
  throws(() => Outer.encode({ op: 256 }), /outer\.op must be an integer from 0 to 255, not 256/);
  throws(() => Outer.encode({ op: 1.5 }), RangeError);
  throws(() => Outer.encode({ value: 1n << 64n }), /outer\.value must be a bigint/);
  throws(() => Outer.encode({ last: 1n << 63n }), RangeError);
  throws(() => Outer.encode({ handle: new Uint8Array(6) }), /at most 5 bytes/);
  throws(() => Outer.encode({ words: [1, 2, 3, 4] }), /at most 3 long/);
  throws(() => Outer.encode({ inner: { count: -1 } }), /inner\.count must be an integer/);
  const view = Inner.view(new Uint8Array(8));
  throws(() => view.tag = -1, RangeError);
});

Deno.test("bytes too few, and offsets outside, are refused", () => {
  throws(() => Inner.decode(new Uint8Array(7)), /inner needs 8 bytes at 0, of 7/);
  throws(() => Inner.view(new Uint8Array(8), 1), RangeError);
  throws(() => Inner.decode(new Uint8Array(16), -1), RangeError);
  throws(() => Inner.decode(new Uint8Array(16), 0.5), RangeError);
});
