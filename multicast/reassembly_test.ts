import assert from "node:assert/strict";
import fc from "fast-check";
import { appendFragment, beginData, DataReader, writeHeader } from "./codec.ts";
import { cutPackets, type Packet, PACKET_CAPACITY } from "./ports.ts";
import { ALL_FRAGMENTS, BLOCK_BYTES, Codec } from "./protocol.ts";
import { blockKey, Reassembly } from "./reassembly.ts";
import { SimMemory } from "./sim_network.ts";

const SLOTS = 4;

function newReassembly(): Reassembly {
  return new Reassembly(new SimMemory().allocate(SLOTS * BLOCK_BYTES), SLOTS);
}

function block(version: number): Uint8Array {
  return Uint8Array.from({ length: BLOCK_BYTES }, (_, at) => (at * 7 + version * 31 + (at >> 8)) & 255);
}

const [packet] = cutPackets(new SimMemory().allocate(PACKET_CAPACITY), 1);

/** A reader at the record of one fragment. */
function fragment(
  encoded: Uint8Array,
  codec: number,
  number: number,
  fragments: number,
): { reader: DataReader; packet: Packet } {
  assert(packet);
  writeHeader(packet, { type: 1, family: 1, sender: 1, counter: 1 });
  beginData(packet, new Uint8Array(16), 1);
  appendFragment(packet, 0, codec, number, fragments, encoded);
  const reader = new DataReader();
  assert(reader.open(packet) && reader.next());
  return { reader, packet };
}

function add(
  reassembly: Reassembly,
  key: number,
  sender: number,
  encoded: Uint8Array,
  codec: number,
  number: number,
  of: number,
) {
  const { reader, packet } = fragment(encoded, codec, number, of);
  return reassembly.add(key, sender, reader, packet.bytes);
}

Deno.test("fragments in any order, with repeats, make the block", () => {
  const reassembly = newReassembly();
  const bytes = block(1);
  assert.equal(reassembly.missing(5), ALL_FRAGMENTS);
  assert.equal(add(reassembly, 5, 1, bytes, Codec.Raw, 2, 3), undefined);
  assert.equal(reassembly.missing(5), 0b011);
  assert.equal(add(reassembly, 5, 1, bytes, Codec.Raw, 2, 3), undefined);
  assert.equal(add(reassembly, 5, 1, bytes, Codec.Raw, 0, 3), undefined);
  const slot = add(reassembly, 5, 1, bytes, Codec.Raw, 1, 3);
  assert.deepEqual(slot?.bytes, bytes);
  reassembly.release(5);
  assert.equal(reassembly.used, 0);
});

Deno.test("what does not fit what is there starts the block anew", () => {
  const reassembly = newReassembly();
  const small = block(2).subarray(0, 3000);
  add(reassembly, 5, 1, block(1), Codec.Raw, 0, 3);
  add(reassembly, 5, 1, small, Codec.Deflate, 0, 2);
  assert.equal(reassembly.missing(5), 0b10);
  // The same encoding, of another server: its compressor may make other bytes.
  assert.equal(add(reassembly, 5, 2, small, Codec.Deflate, 1, 2), undefined);
  assert.equal(reassembly.missing(5), 0b01);
});

Deno.test("memory is bounded: a new block takes the place of an old one", () => {
  const reassembly = newReassembly();
  for (let key = 0; key < 100; key++) add(reassembly, key, 1, block(key), Codec.Raw, 0, 3);
  assert.equal(reassembly.used, SLOTS);
  assert.equal(reassembly.evicted, 96);
  reassembly.releaseObject(0);
  assert.equal(reassembly.used, 0);
});

Deno.test("an object's blocks are released without the others'", () => {
  const reassembly = newReassembly();
  for (const slot of [0, 1, 255]) add(reassembly, blockKey(slot, 2 ** 28 - 1), 1, block(1), Codec.Raw, 0, 3);
  reassembly.releaseObject(255);
  assert.equal(reassembly.used, 2);
  assert.equal(reassembly.missing(blockKey(1, 2 ** 28 - 1)), 0b110);
});

Deno.test("whatever fragments come, a whole block is one version of it", () => {
  const arrival = fc.record({
    key: fc.nat(6),
    sender: fc.integer({ min: 1, max: 3 }),
    fragments: fc.constantFrom(3, 4),
    fragment: fc.nat(3),
  });
  fc.assert(
    fc.property(fc.array(arrival, { maxLength: 120 }), (arrivals) => {
      const reassembly = newReassembly();
      for (const { key, sender, fragments, fragment } of arrivals) {
        const bytes = block(key * 10 + sender * 2 + fragments);
        const slot = add(reassembly, key, sender, bytes, Codec.Raw, fragment % fragments, fragments);
        assert(reassembly.used <= SLOTS);
        if (slot === undefined) continue;
        assert.deepEqual(slot.bytes, bytes);
        reassembly.release(key);
      }
    }),
    { seed: 11, numRuns: 200 },
  );
});
