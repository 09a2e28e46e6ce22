import assert from "node:assert/strict";
import { nodeSealer } from "./node_sealer.ts";
import { DEFAULT_RECEIVER } from "./receiver.ts";
import { type Host, idOf, type ObjectModel, SimCluster, source } from "./sim_cluster.ts";

const FAMILY = idOf(0xfa);
const KEY = new Uint8Array(32).fill(7);

function object(number: number, blocks: number, kind: ObjectModel["kind"] = () => "bytes"): ObjectModel {
  return { id: idOf(number), blocks, kind };
}

function all(model: ObjectModel): number[] {
  return Array.from({ length: model.blocks }, (_, index) => index);
}

/** Host 0 serves, the others want. */
function fork(cluster: SimCluster, model: ObjectModel, mode: "multicast" | "unicast" = "multicast"): Host[] {
  for (const { distribution } of cluster.hosts) distribution.openFamily(FAMILY, { key: KEY, mode });
  cluster.host(0).distribution.addServed(FAMILY, model.id, model.blocks, source(model));
  const receivers = cluster.hosts.slice(1);
  for (const host of receivers) cluster.want(host, FAMILY, model, 0);
  return receivers;
}

function complete(hosts: readonly Host[], model: ObjectModel): boolean {
  return hosts.every(({ got }) => got.get(model.id)?.size === model.blocks);
}

function requestAll(cluster: SimCluster, hosts: readonly Host[], model: ObjectModel): void {
  for (const { distribution } of hosts) {
    distribution.request(model.id, all(model), { urgent: false }, cluster.network.nowMs);
  }
}

function serverBytes(cluster: SimCluster): number {
  return cluster.host(0).unicast.sentBytes;
}

Deno.test("one urgent block comes in one exchange, sealed by AES-GCM", () => {
  using cluster = new SimCluster({ seed: 1, hosts: 2, sealer: nodeSealer });
  const model = object(1, 100);
  const [receiver] = fork(cluster, model);
  assert(receiver);
  receiver.distribution.request(model.id, [42], { urgent: true }, 0);
  assert(cluster.run(() => receiver.got.get(model.id)?.size === 1, 5));
  assert.equal(receiver.got.get(model.id)?.get(42), "bytes");
  assert.equal(receiver.distribution.left(model.id), 0);
});

for (const receivers of [1, 3, 8]) {
  Deno.test(`${receivers} receivers of the same blocks cost the server one copy`, () => {
    using cluster = new SimCluster({ seed: 2, hosts: 1 + receivers });
    const model = object(1, 2000);
    const hosts = fork(cluster, model);
    requestAll(cluster, hosts, model);
    assert(cluster.run(() => complete(hosts, model), 10_000));
    const copies = serverBytes(cluster) / (model.blocks * 4096);
    assert(copies < 1.08, `${copies} copies`);
  });
}

Deno.test("without multicast every receiver gets a copy of its own", async (t) => {
  for (const [name, mode] of [["as configured", "unicast"], ["as detected", "multicast"]] as const) {
    await t.step(name, () => {
      using cluster = new SimCluster({ seed: 3, hosts: 4, network: { multicast: false } });
      const model = object(1, 1500);
      const hosts = fork(cluster, model, mode);
      requestAll(cluster, hosts, model);
      assert(cluster.run(() => complete(hosts, model), 20_000), `took more than ${cluster.network.nowMs} ms`);
    });
  }
});

Deno.test("one receiver without multicast is served by unicast, the others by multicast", () => {
  using cluster = new SimCluster({ seed: 4, hosts: 4 });
  const model = object(1, 1500);
  const hosts = fork(cluster, model);
  cluster.host(3).multicast.cut = true;
  requestAll(cluster, hosts, model);
  assert(cluster.run(() => complete(hosts, model), 20_000));
});

Deno.test("zero blocks are flags, many to a packet, and absent ones are said to be", () => {
  using cluster = new SimCluster({ seed: 5, hosts: 3 });
  const model = object(1, 3000, (index) => index < 2900 ? "zero" : index < 2990 ? "bytes" : "absent");
  const hosts = fork(cluster, model);
  requestAll(cluster, hosts, model);
  assert(cluster.run(() => complete(hosts, model), 5000));
  const bytes = serverBytes(cluster);
  assert(bytes < 90 * 4096 * 1.2, `${bytes} bytes`);
  assert.equal(cluster.host(1).distribution.stats().absentReceived, 10);
});

for (const compression of ["deflate", "zstd"] as const) {
  Deno.test(`${compression} saves packets, and blocks that do not shrink go as they are`, () => {
    using cluster = new SimCluster({ seed: 6, hosts: 2, distribution: { compression } });
    const model = object(1, 300, (index) => index % 3 === 0 ? "bytes" : "text");
    const hosts = fork(cluster, model);
    requestAll(cluster, hosts, model);
    assert(cluster.run(() => complete(hosts, model), 5000));
    const bytes = serverBytes(cluster);
    assert(bytes < 300 * 4096 * 0.5, `${bytes} bytes`);
    assert.equal(cluster.host(1).distribution.stats().undecodable, 0);
  });
}

Deno.test("a path that takes smaller packets gets them", () => {
  using cluster = new SimCluster({ seed: 7, hosts: 2, network: { maxPayload: 1400 } });
  const model = object(1, 200);
  const hosts = fork(cluster, model);
  requestAll(cluster, hosts, model);
  assert(cluster.run(() => complete(hosts, model), 10_000));
  assert.equal(cluster.host(0).distribution.stats().payloadBytes, 1372);
});

Deno.test("what one asks for, its siblings have too", () => {
  using cluster = new SimCluster({ seed: 8, hosts: 4 });
  const model = object(1, 500);
  const hosts = fork(cluster, model);
  // All are known to the server before anything is asked.
  cluster.run(() => false, 10);
  cluster.host(1).distribution.request(model.id, all(model), { urgent: false }, 10);
  assert(cluster.run(() => complete(hosts, model), 5000));
  assert.equal(cluster.host(2).distribution.stats().families[0]?.wanted[0]?.overheard, 500);
});

Deno.test("offered blocks reach everyone unasked", () => {
  using cluster = new SimCluster({ seed: 9, hosts: 3 });
  const model = object(1, 50);
  const hosts = fork(cluster, model);
  cluster.run(() => false, 10);
  assert.equal(cluster.host(0).distribution.offer(model.id, all(model), 10), 50);
  assert(cluster.run(() => complete(hosts, model), 1000));
});

Deno.test("an object that is not served is reported gone; a server that is silent, stalled", () => {
  using cluster = new SimCluster({
    seed: 10,
    hosts: 2,
    distribution: { receiver: { ...DEFAULT_RECEIVER, stallMs: 300 } },
  });
  const model = object(1, 50);
  const [host] = fork(cluster, model);
  assert(host);
  cluster.host(0).distribution.drop(model.id);
  host.distribution.request(model.id, [1, 2], { urgent: true }, 0);
  assert(cluster.run(() => host.gone > 0, 1000));
  cluster.host(0).unicast.cut = true;
  assert(cluster.run(() => host.stalled === 1, 5000));
  assert.equal(host.distribution.left(model.id), 2);
  host.distribution.cancel(model.id, [1, 2]);
  assert.equal(host.distribution.left(model.id), 0);
});

Deno.test("a block can be requested again, and two objects of two families do not mix", () => {
  using cluster = new SimCluster({ seed: 11, hosts: 2 });
  const other = idOf(0xfb);
  const one = object(1, 64);
  const two = object(2, 64);
  const [host] = fork(cluster, one);
  assert(host);
  for (const { distribution } of cluster.hosts) distribution.openFamily(other, { key: new Uint8Array(32).fill(9) });
  cluster.host(0).distribution.addServed(other, two.id, two.blocks, source(two));
  cluster.want(host, other, two, 0);
  requestAll(cluster, [host], one);
  requestAll(cluster, [host], two);
  assert(cluster.run(() => complete([host], one) && complete([host], two), 1000));
  host.got.get(one.id)?.clear();
  requestAll(cluster, [host], one);
  assert(cluster.run(() => complete([host], one), 2000));
});

for (const loss of [0.01, 0.05, 0.2]) {
  Deno.test(`every block arrives at ${loss * 100} % loss with reordering and repetition`, () => {
    using cluster = new SimCluster({
      seed: 12,
      hosts: 5,
      network: { loss, reorder: 0.1, duplicate: 0.05, delayMs: 0.3 },
    });
    const model = object(1, 1200, (index) => index % 11 === 0 ? "zero" : "bytes");
    const hosts = fork(cluster, model);
    requestAll(cluster, hosts, model);
    for (const { distribution } of hosts) distribution.request(model.id, [600, 601], { urgent: true }, 0);
    assert(cluster.run(() => complete(hosts, model), 60_000), `took more than ${cluster.network.nowMs} ms`);
    for (const { distribution } of hosts) assert(distribution.stats().assemblies <= 128);
  });
}
