import assert from "node:assert/strict";
import type { CloneInfo } from "../../agent/api/engine.ts";
import type { AgentSettings } from "./agent_process.ts";
import { assertNothingLeft, hostState } from "./leftovers.ts";
import { SimHost } from "./sim_host.ts";

const RAM = [{ first: 0, pages: 256 }];
/** What the engine leaves to Xen and dom0, in pages. */
const RESERVE = 16_384;

async function open(settings: AgentSettings & { memoryPages?: number } = {}) {
  const host = new SimHost(settings.memoryPages === undefined ? {} : { memoryPages: settings.memoryPages });
  const parent = host.boot({ ram: RAM });
  await host.run(parent, 0, parent.fill(0, parent.pages, { seed: 1, round: 1 }));
  const agent = await host.startAgent(settings);
  const { engine } = agent.agent;
  const clonesOf = (ticket: string): readonly CloneInfo[] => {
    const info = engine.show(ticket);
    assert(info !== undefined && "clones" in info);
    return info.clones;
  };
  return { host, parent, agent, engine, clonesOf, before: hostState(host) };
}

Deno.test("a host with room for some clones grants as many; one with room for none says so", async () => {
  const { host, parent, engine, before } = await open({ memoryPages: RESERVE + 4500 });
  const granted = Number(/^ok \S+ (\d+)$/.exec(await host.ask(parent, "request-ticket 50"))?.[1]);
  assert(granted > 1 && granted < 20, `${granted} clones`);
  let answer = "";
  // The memory that a shell will need is not all taken at once.
  for (let ticket = 0; ticket < 6 && !answer.startsWith("error"); ticket++) {
    answer = await host.ask(parent, "request-ticket 50");
  }
  assert.match(answer, /^error no-memory \S/);
  for (const { ticket, state } of engine.list()) if (state === "ready") await host.during(engine.kill(ticket));
  await assertNothingLeft(host, before);
  await host.stopAgent();
});

Deno.test("memory runs out while a shell is made: fewer are granted, and the half-made one is gone", async () => {
  const { host, parent, agent, before, clonesOf } = await open();
  for (
    const [operation, skip] of [
      ["memory_op.populate_physmap", 3],
      ["domctl.set_paging_mempool_size", 1],
      ["domctl.createdomain", 1],
      ["paging.evict", 300],
      ["xenstore.INTRODUCE", 1],
    ] as const
  ) {
    agent.faults.failNext(operation, "ENOMEM", { skip });
    const ticket = await host.ticket(parent, 3);
    assert.equal(clonesOf(ticket).length, 2, operation);
    assert.equal(await host.ask(parent, `clone ${ticket}`), "ok 0");
    await host.until(() => host.workloads.filter(({ guest }) => guest.alive).length === 3, "two clones");
    await host.verifyAll();
    assert.equal(await host.ask(parent, `kill ${ticket}`), "ok");
    await assertNothingLeft(host, before);
  }
  await host.stopAgent();
});

Deno.test("pages that Xen refuses to nominate are copied", async () => {
  const { host, parent, agent, before } = await open();
  agent.faults.failNext("paging.nominate", "EBUSY", { skip: 2 * 256 + 20, times: 60 });
  agent.faults.failNext("paging.nominate", "ENOMEM", { skip: 2 * 256 + 20, times: 7 });
  const { ticket, clones } = await host.fork(parent, 2);
  const report = await host.during(agent.memory.calls.report(parent.domid as never));
  assert((report?.saved ?? 0) >= 60, `${report?.saved} pages are copied`);
  await host.run(parent, 0, parent.fill(0, parent.pages, { seed: 2, round: 1 }));
  await host.verifyAll();
  assert.equal(clones.length, 2);
  assert.equal(await host.ask(parent, `kill ${ticket}`), "ok");
  await assertNothingLeft(host, before);
  await host.stopAgent();
});

Deno.test("no memory for a page of a clone: that clone is lost, the others and the parent go on", async () => {
  const { host, parent, agent, before, clonesOf } = await open();
  const { ticket, clones } = await host.fork(parent, 2);
  const [starved, other] = clones;
  assert(starved !== undefined && other !== undefined);
  agent.faults.failNext("paging.prep", "ENOMEM");
  starved.guest.spawn(0, starved.verify(0));
  await host.until(() => host.xen.find(starved.domid) === undefined, "the clone's end");
  assert.equal(clonesOf(ticket)[0]?.state, "lost");
  assert.match(clonesOf(ticket)[0]?.reason ?? "", /no memory/);
  await host.run(parent, 0, parent.fill(0, parent.pages, { seed: 3, round: 1 }));
  await host.verifyAll();
  assert(other.guest.alive);
  assert.equal(await host.ask(parent, `kill ${ticket}`), "ok");
  await assertNothingLeft(host, before);
  await host.stopAgent();
});

Deno.test("the store of saved pages is full at the fork: an error, and the parent goes on", async () => {
  const { host, parent, before } = await open({ arenaPages: 3 });
  const ticket = await host.ticket(parent, 1);
  assert.match(await host.ask(parent, `clone ${ticket}`), /^error failed .*full/);
  assert.equal(await host.ask(parent, `kill ${ticket}`), "ok");
  await assertNothingLeft(host, before);
  await host.verifyAll();
  await host.stopAgent();
});

Deno.test("the store of saved pages fills up while the parent writes: it goes on, clones that need a page are lost", async () => {
  const { host, parent, before, clonesOf } = await open({ arenaPages: 30 });
  const { ticket, clones } = await host.fork(parent, 1);
  const [clone] = clones;
  assert(clone !== undefined);
  await host.run(parent, 0, parent.fill(0, parent.pages, { seed: 4, round: 1 }));
  clone.guest.spawn(0, clone.verify(0));
  await host.until(() => host.xen.find(clone.domid) === undefined, "the clone's end");
  assert.deepEqual(clone.faults, []);
  assert.equal(clonesOf(ticket)[0]?.state, "lost");
  assert.match(clonesOf(ticket)[0]?.reason ?? "", /full/);
  await assertNothingLeft(host, before);
  await host.verifyAll();
  await host.stopAgent();
});

Deno.test("clones that crash, power off or are destroyed are lost, each with its reason; join tells", async () => {
  const { host, parent, before } = await open();
  const { ticket, clones } = await host.fork(parent, 4);
  clones[0]?.guest.domain.shutdown(3);
  clones[1]?.guest.domain.shutdown(0);
  clones[2]?.guest.domain.destroy();
  await host.until(() => clones.filter(({ domid }) => host.xen.find(domid) !== undefined).length === 1, "three ends");
  await host.verifyAll();
  clones[3]?.guest.store?.write("data/snowflock/request", "x exit 5 fine");
  await host.until(() => host.xen.domains().length === 1, "the last one's end");
  assert.equal(
    await host.ask(parent, `join ${ticket}`),
    "ok lines 4 0\n1 lost it crashed\n2 lost it powered off\n3 lost it was destroyed\n4 5 fine",
  );
  await assertNothingLeft(host, before);
  await host.stopAgent();
});

Deno.test("a parent that is destroyed before its ticket is used takes its shells along", async () => {
  const { host, parent, before, engine } = await open();
  const ticket = await host.ticket(parent, 3);
  parent.guest.domain.destroy();
  host.msPerRound = 20;
  await assertNothingLeft(host, { ...before, domids: [] });
  assert.equal(engine.list().find((each) => each.ticket === ticket)?.state, "ended");
  await host.stopAgent();
});

Deno.test("an operator destroys a shell: the fork goes on with those that are left", async () => {
  const { host, parent, before, clonesOf } = await open();
  const ticket = await host.ticket(parent, 3);
  const [first] = clonesOf(ticket);
  assert(first?.domid !== undefined);
  host.xen.domain(first.domid).destroy();
  await host.until(() => clonesOf(ticket)[0]?.state === "lost", "the agent sees it", 5000);
  assert.equal(await host.ask(parent, `clone ${ticket}`), "ok 0");
  await host.until(() => host.workloads.length === 3, "two clones");
  await host.verifyAll();
  assert.equal(await host.ask(parent, `kill ${ticket}`), "ok");
  await assertNothingLeft(host, before);
  await host.stopAgent();
});
