/** The engine over two hosts, with real TLS between them. */
import assert from "node:assert/strict";
import { ForkEngine } from "../fork/engine.ts";
import type { Placement } from "../fork/placement.ts";
import { systemClock } from "../fork/timing.ts";
import { spread } from "../policy/mod.ts";
import { Cluster, cpuPolicy, descriptorOf, guestShape, type Node, until } from "./cluster_fake.ts";

const TIMES = { pauseMs: 1, suspendMs: 1, captureMs: 0, nominateMs: 0, resumeMs: 0 };

/** An engine on `node`, of which domain 50 is a parent; what it gave back is written down. */
function engineOn(node: Node, shape = guestShape()) {
  const released: string[] = [];
  const policyReleased: string[] = [];
  const placement: Placement = {
    allocate: (...args) => spread.allocate(...args),
    release: (ticket) => Promise.resolve(void policyReleased.push(ticket)),
  };
  const engine = new ForkEngine({
    local: node.host,
    hosts: [node.host, ...node.peers.hosts],
    parents: {
      prepare: () => Promise.resolve(),
      shapeOf: () => Promise.resolve(shape),
      fork: (_domid, parentName, { snapshot, family }) =>
        Promise.resolve({
          descriptor: { ...descriptorOf(shape), snapshot, family, parentName },
          times: TIMES,
          snapshot: { nominated: 0, copied: 0, inherited: 0, free: 0, holes: 0 },
        }),
      exists: () => true,
      isFrozen: () => false,
      thaw: () => Promise.resolve(),
    },
    store: {
      read: (path) => Promise.resolve(path === "/local/domain/50/name" ? "parent" : undefined),
      list: () => Promise.resolve(["0", "50"]),
    },
    clock: systemClock,
    releaseSnapshot: (id) => Promise.resolve(void released.push(id)),
    placement,
    share: node.peers.share,
  }, { suspendTimeoutMs: 1000, ticketsPerDomain: 8, clonesPerTicket: 100 });
  return { engine, released, policyReleased };
}

async function pair(cluster: Cluster) {
  const [a, b] = [await cluster.start("a"), await cluster.start("b")];
  await until("both are up", () => [a, b].every(({ peers }) => peers.states().every(({ up }) => up)));
  return { a, b };
}

Deno.test("a fork over two hosts: half of the clones on each; the snapshot stays for those elsewhere", async () => {
  await using cluster = await Cluster.make(["a", "b"]);
  const { a, b } = await pair(cluster);
  const { engine, released, policyReleased } = engineOn(a);
  const { ticket, clones } = await engine.requestTicket({ domain: "parent", clones: 4 });
  assert.deepEqual(clones.map(({ host }) => host).toSorted(), ["a", "a", "b", "b"]);
  const report = await engine.clone(ticket);
  assert.deepEqual(report.clones.map(({ state }) => state), ["running", "running", "running", "running"]);
  assert.equal(b.host.starts.length, 1);
  const family = engine.identity(50).family;
  assert.equal(b.memory.opened[0]?.family, family);
  // A clone that lives on another host knows who it is there.
  const [guest] = b.host.clones.values();
  assert.deepEqual(b.host.cloneOf(guest?.domid ?? 0)?.family, family);
  assert.deepEqual(released, []);

  const joined = engine.join(ticket);
  for (const host of [a.host, b.host]) {
    for (const domid of [...host.clones.keys()]) await host.exited(domid, 7, host.name);
  }
  const ended = await joined;
  assert.deepEqual(ended.map(({ state, status, data, host }) => [state, status, data === host]), [
    ["exited", 7, true],
    ["exited", 7, true],
    ["exited", 7, true],
    ["exited", 7, true],
  ]);
  await until("the snapshot is released", () => released.length === 1);
  assert.deepEqual(policyReleased, [ticket]);
});

Deno.test("whole clones elsewhere need no snapshot", async () => {
  await using cluster = await Cluster.make(["a", "b"], { fill: true });
  const { a } = await pair(cluster);
  const { engine, released } = engineOn(a);
  const { ticket } = await engine.requestTicket({ domain: 50, clones: 4 });
  await engine.clone(ticket);
  await until("the snapshot is released", () => released.length === 1);
  await engine.kill(ticket);
  assert.equal(released.length, 1);
});

Deno.test("a host cut off in the middle of a fork: its clones are lost, the others go on, nothing is kept", async () => {
  await using cluster = await Cluster.make(["a", "b"]);
  const { a, b } = await pair(cluster);
  const { engine, released } = engineOn(a);
  const { ticket } = await engine.requestTicket({ domain: 50, clones: 4 });
  const gate = Promise.withResolvers<void>();
  b.host.startGate = gate.promise;
  const forking = engine.clone(ticket);
  await until("it is under way there", () => b.host.starts.length === 1);
  cluster.cut("b");
  const report = await forking;
  const by = (host: string) => report.clones.filter((clone) => clone.host === host);
  assert.deepEqual(by("a").map(({ state }) => state), ["running", "running"]);
  for (const { state, reason } of by("b")) {
    assert.equal(state, "lost");
    assert.match(reason ?? "", /host b is down/);
  }
  await until("the snapshot is released", () => released.length === 1);
  gate.resolve();
  await until("b has noticed", () => b.memory.lost.length > 0);
  cluster.mend();
  await until("nothing is left there", () => b.host.clones.size === 0);
  await engine.kill(ticket);
  assert.equal(a.host.clones.size, 0);
});

Deno.test("a host that cannot run the guest is left out; where no other has room, what is missing is told", async () => {
  await using cluster = await Cluster.make(["a", "b"]);
  const { a, b } = await pair(cluster);
  const { engine, policyReleased } = engineOn(a, guestShape(cpuPolicy(1 << 5)));
  b.cpu = cpuPolicy(0);
  const { clones, ticket } = await engine.requestTicket({ domain: 50, clones: 2 });
  assert.deepEqual(clones.map(({ host }) => host), ["a", "a"]);
  await engine.kill(ticket);
  a.host.room = 0;
  await assert.rejects(engine.requestTicket({ domain: 50, clones: 2 }), /Host b cannot run the guest: it lacks AVX2/);
  await until("both tickets are given back", () => policyReleased.length === 2);
});

Deno.test("a host that dies between the ticket and the fork takes its shells with it, not the fork", async () => {
  await using cluster = await Cluster.make(["a", "b"]);
  const { a, b } = await pair(cluster);
  const { engine } = engineOn(a);
  const { ticket } = await engine.requestTicket({ domain: 50, clones: 2 });
  await b[Symbol.asyncDispose]();
  await until("its shell is lost", () => {
    const info = engine.show(ticket);
    return info !== undefined && "clones" in info && info.clones.some(({ state }) => state === "lost");
  });
  const report = await engine.clone(ticket);
  assert.deepEqual(report.clones.map(({ host, state }) => [host, state]).toSorted(), [["a", "running"], ["b", "lost"]]);
  await engine.shutDown();
});
