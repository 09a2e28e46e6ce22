import assert from "node:assert/strict";
import fc from "fast-check";
import { soak } from "../tests/bench/soak_run.ts";
import { idOf, type Kind, type ObjectModel, SimCluster, source } from "./sim_cluster.ts";

const FAMILY = idOf(0xfa);

Deno.test("under any loss, delay and repetition every requested block comes once, with its content", () => {
  const network = fc.record({
    loss: fc.double({ min: 0, max: 0.2, noNaN: true }),
    duplicate: fc.double({ min: 0, max: 0.2, noNaN: true }),
    reorder: fc.double({ min: 0, max: 0.5, noNaN: true }),
    reorderMs: fc.double({ min: 0, max: 30, noNaN: true }),
    delayMs: fc.double({ min: 0.01, max: 20, noNaN: true }),
    multicast: fc.boolean(),
  });
  const kinds = fc.array(fc.constantFrom<Kind>("bytes", "text", "zero", "absent"), { minLength: 1, maxLength: 120 });
  const asking = fc.record({
    host: fc.integer({ min: 1, max: 3 }),
    from: fc.nat(119),
    count: fc.integer({ min: 1, max: 120 }),
    urgent: fc.boolean(),
    cancel: fc.boolean(),
  });
  fc.assert(
    fc.property(
      fc.integer(),
      network,
      kinds,
      fc.array(asking, { maxLength: 8 }),
      fc.constantFrom("none", "deflate", "zstd"),
      (seed, network, kinds, askings, compression) => {
        using cluster = new SimCluster({ seed, hosts: 4, network, distribution: { assemblies: 16, compression } });
        const model: ObjectModel = { id: idOf(1), blocks: kinds.length, kind: (index) => kinds[index] ?? "zero" };
        for (const { distribution } of cluster.hosts) distribution.openFamily(FAMILY, { key: new Uint8Array(32) });
        cluster.host(0).distribution.addServed(FAMILY, model.id, model.blocks, source(model));
        for (const host of cluster.hosts.slice(1)) cluster.want(host, FAMILY, model, 0);
        const wanted = new Map<number, Set<number>>();
        for (const { host: at, from, count, urgent, cancel } of askings) {
          const host = cluster.host(at);
          const got = host.got.get(model.id);
          const all = Array.from({ length: count }, (_, n) => (from + n) % model.blocks);
          const indexes = all.filter((index) => !got?.has(index));
          host.distribution.request(model.id, indexes, { urgent }, cluster.network.nowMs);
          if (cancel) host.distribution.cancel(model.id, indexes);
          const set = wanted.get(at) ?? new Set();
          for (const index of indexes) cancel ? set.delete(index) : set.add(index);
          wanted.set(at, set);
          cluster.run(() => false, cluster.network.nowMs + 3);
        }
        const done = () => cluster.hosts.slice(1).every(({ distribution }) => distribution.left(model.id) === 0);
        assert(cluster.run(done, 120_000), "blocks are missing");
        for (const [at, set] of wanted) {
          for (const index of set) {
            assert(cluster.host(at).got.get(model.id)?.has(index), `block ${index} of host ${at}`);
          }
        }
        for (const { distribution } of cluster.hosts) assert(distribution.stats().assemblies <= 16);
      },
    ),
    { seed: 42, numRuns: 60 },
  );
});

Deno.test("the soak's first seeds pass", () => {
  for (let seed = 1; seed <= 40; seed++) soak({ seed, hosts: 6, clones: 10, blocks: 48 });
});

Deno.test("the same seed gives the same run", () => {
  const options = { seed: 77, hosts: 6, clones: 10, blocks: 48 };
  assert.deepEqual(soak(options), soak(options));
});
