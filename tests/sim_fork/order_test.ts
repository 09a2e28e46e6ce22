import assert from "node:assert/strict";
import { assertNothingLeft, hostState } from "./leftovers.ts";
import { SimHost } from "./sim_host.ts";

const RAM = [{ first: 0, pages: 160 }];

async function open() {
  const host = new SimHost();
  const parent = host.boot({ ram: RAM });
  await host.run(parent, 0, parent.fill(0, parent.pages.slice(0, 60), { seed: 1, round: 1 }));
  const agent = await host.startAgent();
  return { host, parent, agent, engine: agent.agent.engine, before: hostState(host) };
}

Deno.test("a fork at any moment of the parent's release", async () => {
  const { host, parent, before } = await open();
  let { ticket } = await host.fork(parent, 1);
  for (let rounds = 0; rounds < 60; rounds += 3) {
    const next = await host.ticket(parent, 1);
    assert.equal(await host.ask(parent, `kill ${ticket}`), "ok");
    for (let round = 0; round < rounds; round++) await host.round();
    const known = host.workloads.length;
    assert.equal(await host.ask(parent, `clone ${next}`), "ok 0");
    assert.match(host.journal.text ?? "", /"parents":\[\{"domid":1,/, "a parent that is held is in the journal");
    await host.until(() => host.workloads.length > known, "the clone");
    await host.run(parent, 0, parent.fill(0, parent.pages.slice(0, 60), { seed: 2, round: rounds }));
    await host.verifyAll();
    ticket = next;
  }
  assert.equal(await host.ask(parent, `kill ${ticket}`), "ok");
  await assertNothingLeft(host, before);
  assert.match(host.journal.text ?? "", /"shells":\[\],"parents":\[\]/);
  await host.stopAgent();
});

Deno.test("two forks of one parent at once: the second is told to wait", async () => {
  const { host, engine, before } = await open();
  const [first, second] = await host.during(
    Promise.all([engine.requestTicket({ domain: 1, clones: 2 }), engine.requestTicket({ domain: 1, clones: 2 })]),
  );
  const results = await host.during(Promise.allSettled([
    engine.clone(first.ticket),
    engine.clone(second.ticket),
    engine.clone(first.ticket),
    engine.kill(first.ticket),
  ]));
  assert.deepEqual(results.map(({ status }) => status), ["fulfilled", "rejected", "rejected", "rejected"]);
  for (const result of results.slice(1)) assert.equal((result as PromiseRejectedResult).reason.code, "busy");
  await host.during(engine.clone(second.ticket));
  await host.verifyAll();
  await host.during(Promise.all([engine.kill(first.ticket), engine.kill(second.ticket)]));
  await assertNothingLeft(host, before);
  await host.stopAgent();
});

Deno.test("forks of two parents at once do not disturb each other", async () => {
  const { host, engine, parent } = await open();
  const other = host.boot({ ram: RAM });
  const before = hostState(host);
  await host.run(other, 0, other.fill(0, other.pages.slice(0, 80), { seed: 9, round: 1 }));
  const tickets = await host.during(
    Promise.all([parent, other].map(({ domid }) => engine.requestTicket({ domain: domid, clones: 2 }))),
  );
  await host.during(Promise.all(tickets.map(({ ticket }) => engine.clone(ticket))));
  await host.until(() => host.workloads.length === 6, "four clones");
  await host.verifyAll();
  await host.during(Promise.all(tickets.map(({ ticket }) => engine.kill(ticket))));
  await assertNothingLeft(host, before);
  await host.stopAgent();
});

Deno.test("the agent is told to end at any moment of a ticket and a fork", async () => {
  for (let rounds = 1; rounds < 80; rounds += 4) {
    const { host, engine, parent, before } = await open();
    const work = (async () => {
      const { ticket } = await engine.requestTicket({ domain: parent.domid, clones: 2 });
      await engine.clone(ticket);
    })();
    work.catch(() => {});
    for (let round = 0; round < rounds; round++) await host.round();
    await host.stopAgent();
    await assertNothingLeft(host, before);
    await host.verifyAll();
    assert.match(host.journal.text ?? '"shells":[],"parents":[]', /"shells":\[\],"parents":\[\]/);
  }
});

Deno.test("a fork right after a restart waits until the parent has its pages back", async () => {
  const { host, parent, before } = await open();
  await host.fork(parent, 1);
  host.agent?.machine.kill();
  const { engine } = (await host.startAgent()).agent;
  host.workloads.splice(1);
  const { ticket } = await host.during(engine.requestTicket({ domain: parent.domid, clones: 1 }));
  await host.during(engine.clone(ticket));
  await host.until(() => host.workloads.length === 2, "the clone");
  await host.run(parent, 0, parent.fill(0, parent.pages.slice(0, 60), { seed: 5, round: 1 }));
  await host.verifyAll();
  await host.during(engine.kill(ticket));
  await assertNothingLeft(host, before);
  await host.stopAgent();
});

Deno.test("a checkpoint: the template stands still, clones of it come again and again, its end lets it go on", async () => {
  const { host, parent, engine, before } = await open();
  const template = await host.during(engine.checkpoint(parent.domid));
  assert.equal(template.clones.length, 0);
  assert.equal(parent.guest.domain.shutdownCode, 2);
  for (let time = 0; time < 2; time++) {
    const { ticket } = await host.during(engine.requestTicket({ domain: parent.domid, clones: 2 }));
    const known = host.workloads.length;
    await host.during(engine.clone(ticket));
    await host.until(() => host.workloads.length === known + 2, "two clones");
    await host.verifyAll();
    await host.during(engine.kill(ticket));
  }
  await host.during(engine.kill(template.ticket));
  await host.until(() => parent.guest.resumes === 1, "the template goes on");
  await assertNothingLeft(host, before);
  await host.verifyAll();
  await host.stopAgent();
});
