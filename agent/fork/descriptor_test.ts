import assert from "node:assert/strict";
import fc from "fast-check";
import type { Gfn } from "../../hypercall/ports.ts";
import { MemoryMap } from "../memory/memory_map.ts";
import { decodeDescriptor, type Descriptor, DescriptorError, encodeDescriptor } from "./descriptor.ts";

function sample(): Descriptor {
  const map = new MemoryMap([{ first: 0n as Gfn, pages: 100 }, { first: 0x100000n as Gfn, pages: 28 }]);
  return {
    snapshot: "t0123456789ab",
    family: "f00",
    parentName: "parent",
    vcpus: 2,
    maxPages: 131072n,
    memoryKib: 524288n,
    memory: { map, frames: new Map([[1, 0xfeffcn as Gfn], [17, 0xfefffn as Gfn]]) },
    params: new Map([[10, 1n], [34, 0xffff_ffff_ffffn]]),
    tsc: { mode: 2, khz: 2_000_000, incarnation: 1, elapsedNs: 1n << 60n },
    vifs: [{ handle: 0, bridge: "xenbr0" }],
    cpuPolicy: { leaves: Uint8Array.of(1, 2, 3), msrs: new Uint8Array() },
    context: Uint8Array.from({ length: 9000 }, (_, at) => at & 255),
    identPt: new Uint8Array(4096).fill(7),
    hot: Uint32Array.of(3, 1, 127),
    free: Uint32Array.of(5, 6, 7, 100),
  };
}

Deno.test("descriptor: what was written is read", () => {
  const descriptor = sample();
  const read = decodeDescriptor(encodeDescriptor(descriptor));
  assert.deepEqual({ ...read, memory: undefined }, { ...descriptor, memory: undefined });
  assert.deepEqual(read.memory.map.ranges, descriptor.memory.map.ranges);
  assert.deepEqual(read.memory.frames, descriptor.memory.frames);
});

Deno.test("descriptor: a cut or changed one is refused whole", () => {
  const bytes = encodeDescriptor(sample());
  fc.assert(fc.property(fc.nat(bytes.length - 1), fc.integer({ min: 1, max: 255 }), (at, change) => {
    const bad = bytes.slice();
    bad[at] = (bad[at] ?? 0) ^ change;
    assert.throws(() => decodeDescriptor(bad), DescriptorError);
    assert.throws(() => decodeDescriptor(bytes.subarray(0, at)), DescriptorError);
  }));
  const later = bytes.slice();
  later[4] = 9;
  assert.throws(() => decodeDescriptor(later), /version 9/);
});

Deno.test("descriptor: pages beyond the map are refused", () => {
  assert.throws(() => decodeDescriptor(encodeDescriptor({ ...sample(), hot: Uint32Array.of(128) })), /page 128/);
  assert.throws(
    () => decodeDescriptor(encodeDescriptor({ ...sample(), free: Uint32Array.of(127, 128) })),
    /out of order/,
  );
});
