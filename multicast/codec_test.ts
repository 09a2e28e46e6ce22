import assert from "node:assert/strict";
import fc from "fast-check";
import {
  appendFragment,
  appendRun,
  beginData,
  DataReader,
  namesObject,
  pad,
  rangesPerPacket,
  readHeader,
  readIdle,
  readObjectTag,
  readRequest,
  writeHeader,
  writeIdle,
  writeRequest,
} from "./codec.ts";
import { cutPackets, type Packet, PACKET_CAPACITY } from "./ports.ts";
import { BLOCK_BYTES, Codec, HEADER_BYTES, idBytes, idTag, idWords, MAX_PAYLOAD_BYTES, parseId } from "./protocol.ts";
import { SimMemory } from "./sim_network.ts";

const OBJECT = parseId("00112233445566778899aabbccddeeff");
const HEADER = { type: 1, family: 0xa1b2c3d4e5f6, sender: 0x0102030405, counter: 2 ** 40 + 7 };

function newPacket(): Packet {
  const [packet] = cutPackets(new SimMemory().allocate(PACKET_CAPACITY), 1);
  assert(packet);
  return packet;
}

function records(packet: Packet): string[] {
  const reader = new DataReader();
  assert(reader.open(packet));
  const found = [];
  while (reader.next()) {
    const { index, codec, count, fragment, fragments, length } = reader;
    found.push(codec >= Codec.Zero ? `${index}+${count} as ${codec}` : `${index}: ${fragment}/${fragments}, ${length}`);
  }
  return found;
}

Deno.test("a header is 22 bytes, big-endian, and comes back", () => {
  const packet = newPacket();
  writeHeader(packet, HEADER);
  assert.equal(packet.length, HEADER_BYTES);
  assert.equal(packet.bytes.subarray(0, 22).toHex(), "53460101" + "a1b2c3d4e5f6" + "000102030405" + "010000000007");
  const read = { type: 0, family: 0, sender: 0, counter: 0 };
  assert(readHeader(packet, read));
  assert.deepEqual(read, HEADER);
});

Deno.test("what is not of this protocol or version has no header", () => {
  const read = { type: 0, family: 0, sender: 0, counter: 0 };
  for (const [at, value] of [[0, 0], [2, 2], [3, 0], [3, 9]] as const) {
    const packet = newPacket();
    writeHeader(packet, HEADER);
    packet.bytes[at] = value;
    assert.equal(readHeader(packet, read), false);
  }
  const short = newPacket();
  writeHeader(short, HEADER);
  short.length--;
  assert.equal(readHeader(short, read), false);
});

Deno.test("fragments and runs share a packet; padding is no record", () => {
  const packet = newPacket();
  writeHeader(packet, HEADER);
  beginData(packet, idBytes(OBJECT), 77);
  appendRun(packet, 5, Codec.Zero, 300);
  appendFragment(packet, 9, Codec.Deflate, 0, 1, new Uint8Array(100).fill(3));
  appendFragment(packet, 10, Codec.Raw, 2, 4, new Uint8Array(BLOCK_BYTES));
  pad(packet, packet.length + 6);
  assert.equal(readObjectTag(packet), idTag(OBJECT));
  assert(namesObject(packet, idWords(OBJECT)));
  assert(!namesObject(packet, idWords(parseId("00112233445566778899aabbccddeefe"))));
  assert.deepEqual(records(packet), ["5+300 as 3", "9: 0/1, 100", "10: 2/4, 1024"]);
});

Deno.test("a block of three fragments makes packets that fit an MTU of 1500", () => {
  for (let fragment = 0; fragment < 3; fragment++) {
    const packet = newPacket();
    writeHeader(packet, HEADER);
    beginData(packet, idBytes(OBJECT), 1);
    appendFragment(packet, 1, Codec.Raw, fragment, 3, new Uint8Array(BLOCK_BYTES));
    assert(packet.length + 16 <= MAX_PAYLOAD_BYTES, `${packet.length}`);
  }
});

Deno.test("requests come back, as many ranges as a packet takes", () => {
  const count = rangesPerPacket(MAX_PAYLOAD_BYTES);
  assert.equal(count, 201);
  const ranges = Array.from(
    { length: count + 5 },
    (_, at) => ({ index: at * 10, count: at % 9 + 1, mask: at % 127 + 1 }),
  );
  const packet = newPacket();
  writeHeader(packet, { ...HEADER, type: 2 });
  writeRequest(packet, idBytes(OBJECT), { flags: 3, highest: 0xfffffffe, received: 12, ranges }, 0, count);
  assert(packet.length + 16 <= MAX_PAYLOAD_BYTES);
  assert.deepEqual(readRequest(packet), {
    flags: 3,
    highest: 0xfffffffe,
    received: 12,
    ranges: ranges.slice(0, count),
  });
});

Deno.test("requests with impossible ranges are refused", () => {
  const bad = [
    { index: 0, count: 0, mask: 1 },
    { index: 0, count: 4097, mask: 1 },
    { index: 2 ** 28 - 1, count: 2, mask: 1 },
    { index: 0, count: 1, mask: 0 },
    { index: 0, count: 1, mask: 0x80 },
  ];
  for (const range of bad) {
    const packet = newPacket();
    writeHeader(packet, { ...HEADER, type: 2 });
    writeRequest(packet, idBytes(OBJECT), { flags: 0, highest: 0, received: 0, ranges: [range] }, 0, 1);
    assert.equal(readRequest(packet), undefined, JSON.stringify(range));
  }
});

Deno.test("the end of a stream comes back, and at its exact length only", () => {
  const packet = newPacket();
  writeHeader(packet, { ...HEADER, type: 3 });
  writeIdle(packet, 4000000000);
  assert.equal(readIdle(packet), 4000000000);
  packet.length++;
  assert.equal(readIdle(packet), undefined);
});

Deno.test("any bytes are read within bounds or refused", () => {
  const packet = newPacket();
  const reader = new DataReader();
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 1500 }), fc.boolean(), (noise, begin) => {
      packet.bytes.fill(0xee);
      if (begin) {
        writeHeader(packet, HEADER);
        beginData(packet, idBytes(OBJECT), 1);
      } else packet.length = 0;
      packet.bytes.set(noise, packet.length);
      packet.length += noise.length;
      readHeader(packet, { type: 0, family: 0, sender: 0, counter: 0 });
      readObjectTag(packet);
      readIdle(packet);
      const request = readRequest(packet);
      for (const { index, count, mask } of request?.ranges ?? []) {
        assert(count >= 1 && count <= 4096 && index + count <= 2 ** 28 && mask >= 1 && mask <= 127);
      }
      if (!reader.open(packet)) return;
      while (reader.next()) {
        assert(reader.index + reader.count <= 2 ** 28);
        if (reader.codec >= Codec.Zero) continue;
        assert(reader.start + reader.length <= packet.length && reader.length > 0);
        const each = Math.ceil(reader.encodedLength / reader.fragments);
        assert(reader.fragment * each + reader.length <= BLOCK_BYTES);
      }
    }),
    { seed: 20240131, numRuns: 3000 },
  );
});

Deno.test("a good packet with one byte changed is read within bounds or refused", () => {
  const packet = newPacket();
  const reader = new DataReader();
  fc.assert(
    fc.property(fc.nat(1500), fc.nat(255), fc.nat(1500), (at, value, length) => {
      writeHeader(packet, HEADER);
      beginData(packet, idBytes(OBJECT), 9);
      appendRun(packet, 5, Codec.Absent, 2);
      appendFragment(packet, 10, Codec.Raw, 0, 3, new Uint8Array(BLOCK_BYTES));
      packet.bytes[at % packet.length] = value;
      packet.length = Math.min(packet.length, length);
      if (reader.open(packet)) { while (reader.next()) assert(reader.start + reader.length <= PACKET_CAPACITY); }
    }),
    { seed: 7, numRuns: 3000 },
  );
});
