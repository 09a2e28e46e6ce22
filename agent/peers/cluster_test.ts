import assert from "node:assert/strict";
import type { CloneHost, CloneNews } from "../fork/clone_host.ts";
import { Cluster, descriptorOf, FakeHost, FAMILY, guestShape, type Node, SNAPSHOT, until } from "./cluster_fake.ts";

const UUID = "00000000-0000-4000-8000-00000000000";

function hostOf(node: Node, name: string): CloneHost & { news: CloneNews[] } {
  const host = node.peers.hosts.find((each) => each.name === name);
  assert(host !== undefined);
  const news: CloneNews[] = [];
  host.onNews((each) => news.push(each));
  return Object.assign(host, { news });
}

function isUp(node: Node, name: string): boolean {
  return node.peers.states().find((state) => state.name === name)?.up === true;
}

async function prepare(host: CloneHost, ticket: string, ids: readonly number[]) {
  const clones = ids.map((id) => ({ id, name: `parent-${ticket}-${id}`, uuid: `${UUID}${id}` }));
  return await host.prepare({ ticket, family: FAMILY, clones, shape: guestShape() });
}

async function start(node: Node, host: CloneHost, ticket: string, ids: readonly number[], fill?: boolean) {
  const nodes = new Map(ids.map((id) => [id, { "data/snowflock/id": `${id}` }]));
  const channel = await node.peers.share(SNAPSHOT, FAMILY);
  return await host.start({
    ticket,
    descriptor: descriptorOf(),
    nodes,
    channel,
    ...(fill === undefined ? {} : { fill }),
  });
}

/** Two agents that hear each other, `a` about to have clones on `b`. */
async function pair(cluster: Cluster) {
  const [a, b] = [await cluster.start("a"), await cluster.start("b")];
  await until("both are up", () => isUp(a, "b") && isUp(b, "a"));
  return { a, b, there: hostOf(a, "b") };
}

Deno.test("clones on a peer: prepared, started from the descriptor, told of, ended", async () => {
  await using cluster = await Cluster.make(["a", "b"]);
  const { a, b, there } = await pair(cluster);
  assert.equal(a.peers.states()[0]?.version, "1.2.3");
  b.host.room = 3;
  assert.equal(await there.capacity(guestShape(), 5), 3);

  const prepared = await prepare(there, "t1", [1, 2, 3]);
  assert.deepEqual(prepared.map(({ id, shellMs }) => [id, shellMs]), [[1, 1.5], [2, 1.5], [3, 1.5]]);
  // The parent's bridge is not on b.
  assert.deepEqual(b.host.prepares[0]?.shape.vifs, [{ handle: 0, bridge: "" }]);

  b.host.broken.add(3);
  const started = await start(a, there, "t1", [1, 2, 3]);
  assert.deepEqual(started, [{ id: 1, restoreMs: 2.5 }, { id: 2, restoreMs: 2.5 }, {
    id: 3,
    error: "it cannot be started",
  }]);
  const [request] = b.host.starts;
  assert.deepEqual(request?.nodes.get(2), { "data/snowflock/id": "2" });
  assert.deepEqual(request?.descriptor.context, descriptorOf().context);
  assert.deepEqual(request?.descriptor.hot, Uint32Array.of(1, 2, 3));
  const [source] = b.memory.opened;
  assert.equal(source?.server, "127.0.0.1:7078");
  assert.equal(source?.key, a.memory.served.get(SNAPSHOT)?.key);
  assert.match(source?.key ?? "", /^[0-9a-f]{64}$/);
  assert.deepEqual(source?.free, Uint32Array.of(9, 10));
  assert.deepEqual(b.memory.released, [SNAPSHOT]);
  assert.deepEqual([...await there.memory("t1")], [
    [1, { pages: 1024, absent: 7, filling: 0 }],
    [2, { pages: 1024, absent: 7, filling: 0 }],
  ]);

  b.host.tell({ kind: "running", ticket: "t1", id: 1 });
  b.host.tell({ kind: "running", ticket: "t1", id: 1 });
  b.host.tell({ kind: "exited", ticket: "t1", id: 1, status: 3, data: "bye", memory: { faults: 9 } });
  await until("the exit is told", () => there.news.length === 2);
  assert.deepEqual(there.news, [
    { kind: "running", ticket: "t1", id: 1 },
    { kind: "exited", ticket: "t1", id: 1, status: 3, data: "bye", memory: { faults: 9 } },
  ]);
  await there.end("t1", [2]);
  assert.equal(b.host.find("t1", 2), undefined);
});

Deno.test("a family has one key, on every host that it comes to", async () => {
  await using cluster = await Cluster.make(["a", "b"]);
  const { a, b, there } = await pair(cluster);
  await prepare(there, "t1", [1]);
  await start(a, there, "t1", [1]);
  const again = await b.peers.share("6".repeat(32), FAMILY);
  assert.equal(again.key, a.memory.served.get(SNAPSHOT)?.key);
  const other = await b.peers.share("7".repeat(32), "e".repeat(32));
  assert.notEqual(other.key, again.key);
});

Deno.test("a checkpoint's snapshot is opened once for many tickets", async () => {
  await using cluster = await Cluster.make(["a", "b"]);
  const { a, b, there } = await pair(cluster);
  for (const ticket of ["t1", "t2"]) {
    await prepare(there, ticket, [1]);
    assert.deepEqual(await start(a, there, ticket, [1]), [{ id: 1, restoreMs: 2.5 }]);
  }
  assert.equal(b.memory.opened.length, 1);
  assert.equal(b.memory.released.length, 1);
});

Deno.test("a filled clone is told of as whole; a failed fill is not the clone's end", async () => {
  await using cluster = await Cluster.make(["a", "b"], { fill: true });
  const { a, b, there } = await pair(cluster);
  const filled = Promise.withResolvers<void>();
  b.memory.fills = () => filled.promise;
  await prepare(there, "t1", [1]);
  await start(a, there, "t1", [1]);
  assert.equal((await there.memory("t1")).get(1)?.filling, 1);
  filled.resolve();
  await until("it is whole", () => there.news.some(({ kind }) => kind === "whole"));
  b.memory.fills = () => Promise.reject(new Error("unreachable"));
  await prepare(there, "t2", [1]);
  await start(a, there, "t2", [1]);
  await prepare(there, "t3", [1]);
  await start(a, there, "t3", [1], false);
  assert.equal((await there.memory("t2")).get(1)?.filling, 0);
  assert.deepEqual(there.news.map(({ kind }) => kind), ["whole"]);
});

Deno.test("a peer that is cut off: its clones are lost after the silence, and calls fail with it", async () => {
  await using cluster = await Cluster.make(["a", "b"]);
  const { a, b, there } = await pair(cluster);
  const changes: [string, boolean, string][] = [];
  a.peers.onChange((...change) => changes.push(change));
  await prepare(there, "t1", [1, 2]);
  await start(a, there, "t1", [1, 2]);
  b.host.gate = new Promise(() => {});
  const pending = prepare(there, "t2", [1]);
  const failed = pending.then(
    () => assert.fail("it was made"),
    (error) => assert.match(error.message, /host b is down/),
  );
  const began = performance.now();
  cluster.cut("b");
  await failed;
  const tookMs = performance.now() - began;
  assert(tookMs > 200 && tookMs < 2000, `${tookMs} ms`);
  assert.deepEqual(there.news, [1, 2].map((id) => ({ kind: "ended", ticket: "t1", id, reason: "host b is down" })));
  assert.deepEqual(changes, [["b", false, "host b is down"]]);
  await assert.rejects(there.capacity(guestShape(), 1), /Host b is down/);
});

Deno.test("a peer whose agent ends tells so; one that restarts has lost its guests", async () => {
  await using cluster = await Cluster.make(["a", "b"]);
  const { a, b, there } = await pair(cluster);
  await prepare(there, "t1", [1, 2]);
  await start(a, there, "t1", [1]);
  await b.stopServing();
  assert.equal(b.host.clones.size, 0);
  await until("both are told of", () => there.news.length === 2);
  for (const news of there.news) {
    assert.match(news.kind === "ended" ? news.reason : "", /agent of its host b has ended/);
  }

  await b[Symbol.asyncDispose]();
  await until("b is down", () => !isUp(a, "b"));
  const second = await cluster.start("b");
  await until("b is up again", () => isUp(a, "b"));
  await prepare(there, "t2", [1]);
  assert(second.host.find("t2", 1) !== undefined);
  there.news.length = 0;
  // Faster than silence could be noticed: the new agent does not know the session.
  const closing = kill(second);
  await closing;
  await cluster.start("b", new FakeHost("b"));
  await until("the loss is told", () => there.news.length === 1);
  assert.match(JSON.stringify(there.news[0]), /host b/);
});

Deno.test("a coordinator that falls silent: shells lapse, snapshots count as lost, whole clones go on until it is back", async () => {
  await using cluster = await Cluster.make(["a", "b"]);
  const { a, b, there } = await pair(cluster);
  await prepare(there, "t1", [1, 2]);
  await start(a, there, "t1", [1]);
  assert.deepEqual(b.memory.lost, []);
  await a.peers[Symbol.asyncDispose]();
  await until("the shell has lapsed", () => b.host.find("t1", 2) === undefined);
  await until("the snapshot is lost", () => b.memory.lost.length > 0);
  assert.deepEqual(b.memory.lost, [SNAPSHOT]);
  assert(b.host.find("t1", 1) !== undefined);
});

Deno.test("a coordinator that was cut off and is back: what it has reported as lost is ended", async () => {
  await using cluster = await Cluster.make(["a", "b"]);
  const { a, b, there } = await pair(cluster);
  await prepare(there, "t1", [1, 2]);
  await start(a, there, "t1", [1]);
  cluster.cut("a");
  await until("a knows", () => there.news.length === 2);
  await until("b knows", () => b.memory.lost.length === 1 && b.host.find("t1", 2) === undefined);
  assert(b.host.find("t1", 1) !== undefined);
  cluster.mend();
  await until("they hear each other", () => isUp(a, "b") && isUp(b, "a"));
  await until("nothing is left", () => b.host.clones.size === 0);
  await prepare(there, "t2", [1]);
  assert(b.host.find("t2", 1) !== undefined);
  assert.equal(there.news.length, 2);
});

Deno.test("a coordinator whose agent restarts finds its old guests gone on", async () => {
  await using cluster = await Cluster.make(["a", "b"]);
  const { a, b, there } = await pair(cluster);
  await prepare(there, "t1", [1, 2]);
  await start(a, there, "t1", [1]);
  await kill(a);
  const second = await cluster.start("a");
  await until("the shell is gone", () => b.host.find("t1", 2) === undefined);
  await until("the snapshot is lost", () => b.memory.lost.length > 0);
  assert(b.host.find("t1", 1) !== undefined);
  const again = hostOf(second, "b");
  await until("b is up", () => isUp(second, "b"));
  assert.equal((await again.memory("t1")).size, 0);
  await assert.rejects(prepare(again, "t1", [3]), /not this host's/);
});

Deno.test("an end that overtakes the making of shells waits for them", async () => {
  await using cluster = await Cluster.make(["a", "b"]);
  const { b, there } = await pair(cluster);
  const gate = Promise.withResolvers<void>();
  await prepare(there, "t1", [9]);
  b.host.gate = gate.promise;
  const making = prepare(there, "t1", [1]);
  await until("it is under way", () => b.host.prepares.length === 2);
  const ending = there.end("t1", [1, 9]);
  gate.resolve();
  await Promise.all([making, ending]);
  await until("nothing is left", () => b.host.clones.size === 0);
});

Deno.test("shells that were made when the session was over are ended", async () => {
  await using cluster = await Cluster.make(["a", "b"]);
  const { a, b, there } = await pair(cluster);
  const gate = Promise.withResolvers<void>();
  b.host.gate = gate.promise;
  const making = assert.rejects(prepare(there, "t1", [1]));
  await until("it is under way", () => b.host.prepares.length === 1);
  await a.peers[Symbol.asyncDispose]();
  await making;
  await new Promise((resolve) => setTimeout(resolve, 600));
  gate.resolve();
  await until("the shell was made", () => b.host.made === 1);
  await until("nothing is left", () => b.host.clones.size === 0);
});

Deno.test("three hosts: each coordinates clones on the others", async () => {
  await using cluster = await Cluster.make(["a", "b", "c"]);
  const nodes = [await cluster.start("a"), await cluster.start("b"), await cluster.start("c")];
  await until("all are up", () => nodes.every(({ peers }) => peers.states().every(({ up }) => up)));
  await Promise.all(nodes.map(async (node) => {
    await Promise.all(node.peers.hosts.map((host) => prepare(host, `t-${node.name}`, [1])));
  }));
  for (const { name, host } of nodes) {
    const tickets = [...host.clones.values()].map(({ ticket }) => ticket).toSorted();
    assert.deepEqual(tickets, ["a", "b", "c"].filter((other) => other !== name).map((other) => `t-${other}`));
  }
});

/** The agent ends without a word. */
async function kill(node: Node): Promise<void> {
  node.host.clones.clear();
  await node[Symbol.asyncDispose]();
}
