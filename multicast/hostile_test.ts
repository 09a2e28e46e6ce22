/** What a stranger sends, and what a stranger repeats: rejected, counted, without effect. */
import assert from "node:assert/strict";
import { appendFragment, beginData, writeHeader } from "./codec.ts";
import { nodeSealer } from "./node_sealer.ts";
import { cutPackets, type Packet, PACKET_CAPACITY } from "./ports.ts";
import { BLOCK_BYTES, Codec, idBytes, idTag, MessageType } from "./protocol.ts";
import { type Host, idOf, type ObjectModel, SimCluster, source } from "./sim_cluster.ts";
import { randomOf, SimMemory, type SimSocket } from "./sim_network.ts";

const FAMILY = idOf(0xfa);
const KEY = new Uint8Array(32).fill(7);
const MODEL: ObjectModel = { id: idOf(1), blocks: 200, kind: () => "bytes" };

interface Scene {
  readonly cluster: SimCluster;
  readonly server: Host;
  readonly receiver: Host;
  readonly stranger: SimSocket;
}

/** A server, a receiver that has 100 of 200 blocks, and a stranger on their network. */
function scene(): Scene {
  const cluster = new SimCluster({ seed: 1, hosts: 2, sealer: nodeSealer });
  for (const { distribution } of cluster.hosts) distribution.openFamily(FAMILY, { key: KEY });
  const [server, receiver] = [cluster.host(0), cluster.host(1)];
  server.distribution.addServed(FAMILY, MODEL.id, MODEL.blocks, source(MODEL));
  cluster.want(receiver, FAMILY, MODEL, 0);
  receiver.distribution.request(MODEL.id, Array.from({ length: 100 }, (_, at) => at), { urgent: false }, 0);
  assert(cluster.run(() => receiver.got.get(MODEL.id)?.size === 100, 1000));
  cluster.run(() => false, 1000);
  return { cluster, server, receiver, stranger: cluster.network.open({ ip: 0x0a0000fe, port: 7000 }) };
}

function newPacket(): Packet {
  const [packet] = cutPackets(new SimMemory().allocate(PACKET_CAPACITY), 1);
  assert(packet);
  return packet;
}

function send({ cluster, server, receiver, stranger }: Scene, bytes: Uint8Array): void {
  for (const host of [server, receiver]) cluster.network.send(stranger, bytes, host.unicast.local);
}

/** State that a stranger must not change, of both hosts. */
function state({ server, receiver }: Scene): string {
  const of = ({ distribution }: Host) => {
    const { families, sentPackets, blocksReceived, zeroReceived, malformed, duplicates, assemblies } = distribution
      .stats();
    return { families, sentPackets, blocksReceived, zeroReceived, malformed, duplicates, assemblies };
  };
  // Keep-alives go on meanwhile: these are compared at one instant only.
  return JSON.stringify([of(server), of(receiver)]);
}

Deno.test("forged packets are counted and do nothing", () => {
  const at = scene();
  using cluster = at.cluster;
  const before = state(at);
  const packet = newPacket();
  const forger = nodeSealer(new Uint8Array(32).fill(8));
  for (const type of Object.values(MessageType)) {
    writeHeader(packet, { type, family: idTag(FAMILY), sender: 99, counter: 1 });
    beginData(packet, idBytes(MODEL.id), 1);
    appendFragment(packet, 150, Codec.Raw, 0, 3, new Uint8Array(BLOCK_BYTES).fill(1));
    forger.seal(packet);
    send(at, packet.bytes.slice(0, packet.length));
  }
  cluster.run(() => false, 1010);
  assert.equal(state(at), before);
  assert.equal(at.server.distribution.stats().forged, 4);
  assert.equal(at.receiver.distribution.stats().forged, 4);
});

Deno.test("every kind of noise is dropped: random, truncated, oversized, of a strange family, with a bit changed", () => {
  const at = scene();
  using cluster = at.cluster;
  const recorded = record(at);
  assert(recorded.length > 3);
  const before = state(at);
  const random = randomOf(5);
  let sent = 0;
  const throwAt = (bytes: Uint8Array) => {
    send(at, bytes);
    sent++;
    cluster.run(() => false, cluster.network.nowMs + 0.2);
  };
  const startMs = cluster.network.nowMs;
  for (let n = 0; n < 300; n++) {
    const genuine = recorded[n % recorded.length] ?? new Uint8Array();
    const changed = genuine.slice();
    const byte = Math.floor(random() * changed.length);
    changed[byte] = (changed[byte] ?? 0) ^ (1 << Math.floor(random() * 8));
    const noise = Uint8Array.from({ length: Math.floor(random() * 2048) }, () => Math.floor(random() * 256));
    const begun = noise.slice();
    begun.set([0x53, 0x46, 1, 1 + n % 4].slice(0, begun.length));
    for (const bytes of [changed, noise, begun, genuine.subarray(0, Math.floor(random() * genuine.length))]) {
      throwAt(bytes);
    }
  }
  assert(cluster.network.nowMs < startMs + 1900, "before the next keep-alive");
  assert.equal(state(at), before);
  const { notOurs, unknownFamily, forged, replayed, own } = at.receiver.distribution.stats();
  assert.equal(notOurs + unknownFamily + forged + replayed + own, sent);
  assert(notOurs > 0 && unknownFamily > 0 && forged > 0);
});

Deno.test("recorded packets that are sent again are counted and do nothing", () => {
  const at = scene();
  using cluster = at.cluster;
  const recorded = record(at);
  const before = state(at);
  const counted = () => at.server.distribution.stats().replayed + at.server.distribution.stats().own;
  const countedBefore = counted();
  for (const bytes of recorded) send(at, bytes);
  cluster.run(() => false, cluster.network.nowMs + 5);
  assert.equal(state(at), before);
  assert.equal(counted() - countedBefore, recorded.length);
  assert(at.server.distribution.stats().replayed > 0);
});

Deno.test("a family's key opens nothing of another, though its id is copied", () => {
  const at = scene();
  using cluster = at.cluster;
  const recorded = record(at);
  const other = idOf(0xfb);
  at.receiver.distribution.openFamily(other, { key: new Uint8Array(32).fill(9) });
  const forgedBefore = at.receiver.distribution.stats().forged;
  for (const bytes of recorded) {
    const moved = bytes.slice();
    new DataView(moved.buffer).setUint16(4, Math.floor(idTag(other) / 2 ** 32));
    new DataView(moved.buffer).setUint32(6, idTag(other) % 2 ** 32);
    cluster.network.send(at.stranger, moved, at.receiver.unicast.local);
  }
  cluster.run(() => false, cluster.network.nowMs + 5);
  assert.equal(at.receiver.distribution.stats().forged, forgedBefore + recorded.length);
});

/** Asks for 50 more blocks; all datagrams of both hosts meanwhile. */
function record({ cluster, receiver }: Scene): Uint8Array[] {
  const { network } = cluster;
  const recorded: Uint8Array[] = [];
  const send = network.send.bind(network);
  network.send = (from, bytes, to) => {
    recorded.push(bytes.slice());
    send(from, bytes, to);
  };
  receiver.distribution.request(
    MODEL.id,
    Array.from({ length: 50 }, (_, at) => 100 + at),
    { urgent: false },
    network.nowMs,
  );
  assert(cluster.run(() => receiver.got.get(MODEL.id)?.size === 150, network.nowMs + 100));
  // All reports and ends of the stream are over, and the next keep-alive is 2 s away.
  cluster.run(() => false, network.nowMs + 90);
  network.send = send;
  return recorded;
}
