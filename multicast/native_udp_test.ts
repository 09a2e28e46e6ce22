import assert from "node:assert/strict";
import { Libc } from "../hypercall/native/libc.ts";
import { EpollPoller } from "../hypercall/native/poller.ts";
import { Distribution } from "./distribution.ts";
import { nativeMemory } from "./native_memory.ts";
import { nativeSealer } from "./native_sealer.ts";
import { NativeUdp } from "./native_udp.ts";
import { nodeSealer } from "./node_sealer.ts";
import { cutPackets, type Packet, PACKET_CAPACITY } from "./ports.ts";
import { BLOCK_BYTES, formatEndpoint, parseEndpoint, parseId } from "./protocol.ts";

const ANY = parseEndpoint("127.0.0.1:0");
const FAMILY = parseId("0123456789abcdef0123456789abcdef");
const OBJECT = parseId("fedcba9876543210fedcba9876543210");

function packets(count: number): Packet[] {
  return cutPackets(nativeMemory().allocate(count * PACKET_CAPACITY), count);
}

function fill(packet: Packet, length: number, seed: number): void {
  packet.length = length;
  for (let at = 0; at < length; at++) packet.bytes[at] = (at * 13 + seed) & 255;
}

Deno.test("libcrypto and node:crypto open what the other has sealed", () => {
  const key = crypto.getRandomValues(new Uint8Array(32));
  using native = nativeSealer()(key);
  using node = nodeSealer(key);
  const [packet] = packets(1);
  assert(packet);
  for (const length of [22, 23, 500, 1456]) {
    for (const [one, other] of [[native, node], [node, native], [native, native]] as const) {
      fill(packet, length, length);
      const clear = packet.bytes.slice(0, length);
      one.seal(packet);
      assert.equal(packet.length, length + 16);
      const sealed = packet.bytes.slice(0, packet.length);
      assert.deepEqual(sealed.subarray(0, 22), clear.subarray(0, 22));
      assert(length < 40 || !sealed.subarray(22, length).every((byte, at) => byte === clear[22 + at]));
      assert(other.open(packet));
      assert.equal(packet.length, length);
      assert.deepEqual(packet.bytes.slice(0, length), clear);
      // One bit, anywhere.
      for (const at of [0, 12, 21, length - 1, length, length + 15]) {
        packet.bytes.set(sealed);
        packet.length = sealed.length;
        packet.bytes[at] = (packet.bytes[at] ?? 0) ^ 1;
        assert(!other.open(packet), `bit of byte ${at} of ${length}`);
      }
    }
  }
  packet.length = 30;
  assert(!native.open(packet) && !node.open(packet), "shorter than header and tag");
});

for (const segments of [true, false]) {
  Deno.test(`batches arrive whole and in order, ${segments ? "cut by the kernel" : "one message each"}`, () => {
    using one = new NativeUdp({ local: ANY, segments });
    using other = new NativeUdp({ local: ANY });
    const out = packets(100);
    const lengths = out.map((_, at) => at % 7 === 6 ? 300 + at : 1433);
    out.forEach((packet, at) => fill(packet, lengths[at] ?? 0, at));
    const messages = out.map((packet) => ({ packet, ...other.local }));
    assert.deepEqual(one.send(messages, 100), { done: 100, failed: 0, tooLarge: false });
    const into = packets(64);
    const got: Uint8Array[] = [];
    for (let count = other.receive(into); count > 0; count = other.receive(into)) {
      for (const packet of into.slice(0, count)) {
        got.push(packet.bytes.slice(0, packet.length));
        assert.equal(formatEndpoint(packet), formatEndpoint(one.local));
      }
    }
    assert.deepEqual(got, out.map((packet) => packet.bytes.slice(0, packet.length)));
  });
}

Deno.test("a message that fails is counted, and the others go", () => {
  using one = new NativeUdp({ local: ANY });
  using other = new NativeUdp({ local: ANY });
  const out = packets(3);
  out.forEach((packet) => fill(packet, 100, 1));
  // Port 0 is no destination: EINVAL.
  const messages = out.map((packet, at) => ({ packet, ip: other.local.ip, port: at === 1 ? 0 : other.local.port }));
  assert.deepEqual(one.send(messages, 3), { done: 3, failed: 1, tooLarge: false });
  assert.equal(other.receive(packets(4)), 2);
});

Deno.test("a socket that cannot be bound says where", () => {
  assert.throws(() => new NativeUdp({ local: parseEndpoint("192.0.2.1:7000") }), /192\.0\.2\.1:7000: E99/);
});

Deno.test("blocks cross real sockets by unicast, sealed, to pinned memory", () => {
  const open = () => {
    const distribution = new Distribution({
      unicast: new NativeUdp({ local: ANY }),
      memory: nativeMemory(),
      sealer: nativeSealer(),
      random48: () => Number((crypto.getRandomValues(new BigUint64Array(1))[0] ?? 0n) % 2n ** 48n),
    });
    distribution.openFamily(FAMILY, { key: new Uint8Array(32).fill(1), mode: "unicast" });
    return distribution;
  };
  const unicast = new NativeUdp({ local: ANY });
  using server = new Distribution({ unicast, memory: nativeMemory(), sealer: nativeSealer(), random48: () => 77 });
  server.openFamily(FAMILY, { key: new Uint8Array(32).fill(1), mode: "unicast" });
  using receiver = open();
  const block = (index: number) => new Uint8Array(BLOCK_BYTES).fill(index % 250 + 1);
  server.addServed(FAMILY, OBJECT, 1000, { readBlock: block });
  let came = 0;
  receiver.addWanted(FAMILY, OBJECT, {
    blocks: 1000,
    server: unicast.local,
    sink: {
      onBlock: (index, got) => {
        assert(got !== "zero");
        assert.equal(got.address % 4096n, 0n);
        const pointer = Deno.UnsafePointer.create(got.address);
        assert(pointer);
        assert.equal(new Deno.UnsafePointerView(pointer).getUint8(4095), index % 250 + 1);
        assert(got.bytes.every((byte) => byte === index % 250 + 1));
        came++;
      },
      onAbsent: () => assert.fail("absent"),
      onGone: () => assert.fail("gone"),
      onStalled: () => assert.fail("stalled"),
    },
  });
  const poller = new EpollPoller(new Libc());
  for (const fd of [...server.fds, ...receiver.fds]) poller.add(fd);
  receiver.request(OBJECT, Array.from({ length: 1000 }, (_, at) => at), { urgent: false }, performance.now());
  const endMs = performance.now() + 10_000;
  while (came < 1000 && performance.now() < endMs) {
    for (const fd of poller.wait(1)) (server.fds.includes(fd) ? server : receiver).onReadable(fd, performance.now());
    for (const each of [server, receiver]) each.onTimer(performance.now());
  }
  assert.equal(came, 1000);
  unicast[Symbol.dispose]();
});
