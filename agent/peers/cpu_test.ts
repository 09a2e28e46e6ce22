import assert from "node:assert/strict";
import { CpuidLeaf } from "../../hypercall/abi/mod.ts";
import type { CpuPolicy } from "../../hypercall/xen_api.ts";
import { missingFeatures } from "./cpu.ts";

const NONE = 0xffff_ffff;
type Leaf = Partial<Record<"a" | "b" | "c" | "d", number>>;

function policy(leaves: Readonly<Record<string, Leaf>>): CpuPolicy {
  const intel = { a: 0xd, b: 0x756e6547, c: 0x6c65746e, d: 0x49656e69 };
  const all: Record<string, Leaf> = { "0": intel, "80000000": { a: 0x8000_0008 }, ...leaves };
  const encoded = Object.entries(all).map(([name, registers]) => {
    const [leaf, subleaf] = name.split(".");
    return CpuidLeaf.encode({
      leaf: Number.parseInt(leaf ?? "", 16),
      subleaf: subleaf === undefined ? NONE : Number(subleaf),
      ...registers,
    });
  });
  const bytes = new Uint8Array(encoded.length * CpuidLeaf.size);
  encoded.forEach((leaf, at) => bytes.set(leaf, at * CpuidLeaf.size));
  return { leaves: bytes, msrs: new Uint8Array() };
}

Deno.test("a host that offers as much, or more, can run the guest", () => {
  const guest = policy({ "1": { c: 1 << 20, d: 1 << 26 }, "7.0": { b: 1 << 5 } });
  const host = policy({ "1": { c: 0x7fff_ffff, d: 0xffff_ffff }, "7.0": { b: 0xffff_ffff, c: 1 } });
  assert.deepEqual(missingFeatures(guest, guest), []);
  assert.deepEqual(missingFeatures(guest, host), []);
});

Deno.test("what a host lacks is named", () => {
  const guest = policy({
    "0": { a: 0x16, b: 0x756e6547, c: 0x6c65746e, d: 0x49656e69 },
    "1": { c: 1 << 12, d: 1 },
    "7.0": { b: 0x8000_0020, c: 1 << 22, d: 1 << 4 },
    "d.0": { a: 0b111 },
    "d.1": { a: 0b10 },
    "80000000": { a: 0x8000_001e },
    "80000001": { c: 1 << 5, d: 1 << 26 },
  });
  const host = policy({ "1": { d: 1 }, "d.0": { a: 0b11 } });
  assert.deepEqual(missingFeatures(guest, host), [
    "basic CPUID leaves up to 0x16 (here: 0xd)",
    "extended CPUID leaves up to 0x8000001e (here: 0x80000008)",
    "FMA",
    "AVX2",
    "AVX512VL",
    "RDPID",
    "FSRM",
    "AVX state",
    "XSAVEC",
    "ABM/LZCNT",
    "PAGE1GB",
  ]);
});

Deno.test("a feature without a name is told by its place, another vendor by both", () => {
  assert.deepEqual(missingFeatures(policy({ "7.1": { a: 1 } }), policy({})), ["CPUID 7.1.a bit 0"]);
  const amd = policy({ "0": { a: 0xd, b: 0x68747541, c: 0x444d4163, d: 0x69746e65 } });
  assert.deepEqual(missingFeatures(policy({}), amd), ["a processor of GenuineIntel (this one is of AuthenticAMD)"]);
});

Deno.test("bits that say how a machine is set up are no features; a long list is cut", () => {
  const guest = policy({ "1": { c: 0x8800_0000, d: (1 << 28) | (1 << 9) }, "7.0": { b: 1 << 13, c: 1 << 4 } });
  assert.deepEqual(missingFeatures(guest, policy({})), []);
  const much = missingFeatures(policy({ "1": { c: 0xffff_ffff, d: 0xffff_ffff } }), policy({}));
  assert.equal(much.length, 33);
  assert.match(much.at(-1) ?? "", /^\d+ more$/);
});

Deno.test("bytes that are no leaves are refused", () => {
  const bad = { leaves: Uint8Array.of(1, 2, 3), msrs: new Uint8Array() };
  assert.throws(() => missingFeatures(bad, policy({})), RangeError);
  assert.throws(() => missingFeatures({ ...bad, leaves: new Uint8Array() }, policy({})), RangeError);
});
