import assert from "node:assert/strict";
import type { AgentSettings } from "./agent_process.ts";
import { assertNothingLeft, hostState } from "./leftovers.ts";
import { SimHost } from "./sim_host.ts";
import type { Workload } from "./workload.ts";

const RAM = [{ first: 0, pages: 256 }];
const FIRST = { seed: 1, round: 1 };

async function open(settings: AgentSettings = {}) {
  const host = new SimHost();
  const parent = host.boot({ ram: RAM });
  await host.run(parent, 0, parent.fill(0, parent.pages.slice(0, 120), FIRST));
  const agent = await host.startAgent(settings);
  return { host, parent, agent, before: hostState(host) };
}

/** Rewrites part of a guest's memory, so that it is like no other's. */
async function diverge(host: SimHost, workload: Workload, seed: number): Promise<void> {
  await host.run(workload, 0, workload.fill(0, workload.pages.slice(seed % 50, 90 + seed % 50), { seed, round: 1 }));
}

Deno.test("a second fork while the first one's clones live: each clone has the memory of its own moment", async () => {
  const { host, parent, before } = await open();
  const first = await host.fork(parent, 2);
  await diverge(host, parent, 20);
  const second = await host.fork(parent, 2);
  await diverge(host, parent, 31);
  await host.verifyAll();
  for (const [index, clone] of [...first.clones, ...second.clones].entries()) await diverge(host, clone, 40 + index);
  await host.verifyAll();
  assert.equal(await host.ask(parent, `kill ${first.ticket}`), "ok");
  const third = await host.fork(parent, 1);
  await host.verifyAll();
  assert.equal(await host.ask(parent, `kill ${second.ticket}`), "ok");
  assert.equal(await host.ask(parent, `kill ${third.ticket}`), "ok");
  await assertNothingLeft(host, before);
  await host.verifyAll();
  await host.stopAgent();
});

Deno.test("a clone forks, and its clone forks: pages come from whichever ancestor has them", async () => {
  const { host, parent, before } = await open();
  const first = await host.fork(parent, 1);
  const [child] = first.clones;
  assert(child !== undefined);
  // Some pages of the clone are its own, some nominated, most are still absent.
  await diverge(host, child, 11);
  const second = await host.fork(child, 2);
  const [grandchild, sibling] = second.clones;
  assert(grandchild !== undefined && sibling !== undefined);
  await diverge(host, parent, 12);
  await diverge(host, grandchild, 13);
  const third = await host.fork(grandchild, 2);
  await diverge(host, child, 14);
  await diverge(host, grandchild, 15);
  await host.verifyAll();
  assert.deepEqual(third.clones.map(({ guest }) => guest.store?.read("data/snowflock/id")), ["1", "2"]);
  assert.equal(host.workloads.length, 6);
  for (const [workload, { ticket }] of [[grandchild, third], [child, second], [parent, first]] as const) {
    assert.equal(await host.ask(workload, `kill ${ticket}`), "ok");
  }
  await assertNothingLeft(host, before);
  await host.verifyAll();
  await host.stopAgent();
});

Deno.test("a clone that forked ends while its own clones live: they keep the memory that they need", async () => {
  const { host, parent, before } = await open();
  const first = await host.fork(parent, 1);
  const [child] = first.clones;
  assert(child !== undefined);
  await diverge(host, child, 11);
  const second = await host.fork(child, 2);
  child.guest.store?.write("data/snowflock/request", "bye exit 7");
  await host.until(() => host.xen.find(child.domid) === undefined, "the clone's end");
  assert.equal(await host.ask(parent, `join ${first.ticket}`), "ok lines 1 0\n1 7");
  await diverge(host, parent, 12);
  await host.verifyAll();
  for (const [index, clone] of second.clones.entries()) await diverge(host, clone, 20 + index);
  await host.verifyAll();
  const engine = host.agent?.agent.engine;
  assert(engine !== undefined);
  await host.during(engine.kill(second.ticket));
  await assertNothingLeft(host, before);
  await host.verifyAll();
  await host.stopAgent();
});

Deno.test("a parent shuts down while its clones live: they go on, and so do their clones", async () => {
  const { host, parent, before } = await open();
  const { ticket, clones } = await host.fork(parent, 2);
  parent.guest.domain.shutdown(0);
  await host.until(() => !parent.guest.domain.paging.enabled, "the parent is let go");
  // xl's monitor destroys what has powered off.
  parent.guest.domain.destroy();
  await host.verifyAll();
  const [clone] = clones;
  assert(clone !== undefined);
  const next = await host.fork(clone, 1);
  await host.verifyAll();
  const engine = host.agent?.agent.engine;
  await host.during(engine?.kill(next.ticket) ?? Promise.reject());
  await host.during(engine?.kill(ticket) ?? Promise.reject());
  // Its nodes are the toolstack's to remove.
  await assertNothingLeft(host, { ...before, domids: [] });
  await host.stopAgent();
});

Deno.test("a parent that is destroyed takes its untouched pages along: clones that need one are lost, and told so", async () => {
  const { host, parent } = await open();
  const { ticket, clones } = await host.fork(parent, 2);
  const [reader, idle] = clones;
  assert(reader !== undefined && idle !== undefined);
  parent.guest.domain.destroy();
  reader.guest.spawn(0, reader.verify(0));
  await host.until(() => host.xen.find(reader.domid) === undefined, "the clone's end");
  const info = host.agent?.agent.engine.show(ticket);
  assert(info !== undefined && "clones" in info);
  assert.equal(info.clones[0]?.state, "lost");
  assert.match(info.clones[0]?.reason ?? "", /forked from|gone/);
  assert.equal(info.clones[1]?.state, "running", "one that needs none goes on");
  assert(idle.guest.alive);
  await host.stopAgent();
  assert.deepEqual(hostState(host).domids, []);
});

Deno.test("clones that are filled need nobody: the parent's pages are its own again, and its end is not theirs", async () => {
  const { host, parent } = await open({ fill: true });
  const { ticket, clones } = await host.fork(parent, 2);
  const engine = host.agent?.agent.engine;
  await host.until(() => !host.xen.domain(parent.domid).paging.enabled, "the end of the parent's ring");
  await host.verifyAll();
  parent.guest.domain.destroy();
  for (const clone of clones) await host.run(clone, 0, clone.verify(0));
  const info = engine?.show(ticket);
  assert(info !== undefined && "clones" in info);
  assert.deepEqual(info.clones.map(({ state }) => state), ["running", "running"]);
  for (const clone of clones) assert(clone.guest.alive);
  await host.stopAgent();
  assert.deepEqual(hostState(host).domids, []);
});

Deno.test("the agent's orderly end: clones are ended, parents are let go", async () => {
  const { host, parent, before } = await open();
  await host.fork(parent, 3);
  await host.ticket(parent, 2);
  await host.stopAgent();
  await assertNothingLeft(host, before);
  await host.verifyAll();
});
