import assert from "node:assert/strict";
import { fillStore, floodRequests, refusalOf, sendOversized, writeGarbage } from "../sim/mod.ts";
import { assertNothingLeft, hostState } from "./leftovers.ts";
import { SimHost } from "./sim_host.ts";

const RAM = [{ first: 0, pages: 192 }];

async function open() {
  const host = new SimHost();
  const guest = host.boot({ ram: RAM });
  const other = host.boot({ ram: RAM });
  for (const each of [guest, other]) {
    await host.run(each, 0, each.fill(0, each.pages.slice(0, 50), { seed: each.domid, round: 1 }));
  }
  const agent = await host.startAgent();
  return { host, guest, other, agent, before: hostState(host) };
}

Deno.test("numbers of clones that make no sense are refused at once", async () => {
  const { host, guest, before } = await open();
  for (const count of ["0", "-1", "1001", "99999999999999999999", "1e3", "0x10", "many", "", "2 3", "1.5"]) {
    assert.match(await host.ask(guest, `request-ticket ${count}`), /^error bad-count \S/, count);
  }
  assert.match(await host.ask(guest, "request-ticket 1000"), /^error limit \S/);
  await assertNothingLeft(host, before);
  await host.stopAgent();
});

Deno.test("tickets: unknown ones, another domain's, used ones", async () => {
  const { host, guest, other, before } = await open();
  for (const verb of ["clone", "join", "kill"]) {
    assert.match(await host.ask(guest, `${verb} t0123456789ab`), /^error no-such-ticket \S/);
    assert.match(await host.ask(guest, `${verb} ../../etc`), /^error bad-request \S/);
  }
  const ticket = await host.ticket(guest, 1);
  for (const verb of ["clone", "join", "kill"]) {
    assert.match(await host.ask(other, `${verb} ${ticket}`), /^error not-yours \S/);
  }
  assert.match(await host.ask(guest, `join ${ticket}`), /^error bad-request \S/);
  assert.match(await host.ask(guest, "exit 0"), /^error not-yours \S/);
  assert.equal(await host.ask(guest, `clone ${ticket}`), "ok 0");
  await host.until(() => host.workloads.length === 3, "the clone");
  assert.match(await host.ask(guest, `clone ${ticket}`), /^error ended \S/);
  assert.equal(await host.ask(guest, `kill ${ticket}`), "ok");
  assert.equal(await host.ask(guest, `kill ${ticket}`), "ok", "a second time does no harm");
  assert.match(await host.ask(guest, `clone ${ticket}`), /^error ended \S/);
  await assertNothingLeft(host, before);
  await host.stopAgent();
});

Deno.test("garbage, a message of 64 KiB and a full store: refused, and another guest forks meanwhile", async () => {
  const { host, guest, other, before } = await open();
  const { store } = guest.guest;
  assert(store !== undefined);
  assert.equal(writeGarbage(store), undefined);
  await host.until(() => /^- error bad-request/.test(store.read("data/snowflock/answer") ?? ""), "an answer");
  assert.equal(refusalOf(() => store.write("data/snowflock/request", "x".repeat(4000))), "ENOSPC");
  assert.equal(fillStore(store), "ENOSPC");
  const hostile = host.xenstore.connectGuest(guest.domid);
  sendOversized((bytes) => hostile.feed(bytes));
  assert(hostile.closed);
  const { ticket, clones } = await host.fork(other, 1);
  await host.verifyAll();
  assert.equal(clones.length, 1);
  assert.equal(await host.ask(other, `kill ${ticket}`), "ok");
  assert.match(await host.ask(guest, "request-ticket none"), /^error bad-count/, "it is served still");
  await assertNothingLeft(host, before);
  await host.stopAgent();
});

Deno.test("a flood of requests costs the one who floods, and nobody else", async () => {
  const { host, guest, other, before } = await open();
  host.msPerRound = 5;
  const { store } = guest.guest;
  assert(store !== undefined);
  guest.guest.spawn(
    1,
    (function* () {
      for (let burst = 0; burst < 200; burst++) {
        floodRequests(store, 50);
        yield;
      }
    })(),
  );
  const started = host.clock.nowMs;
  const { ticket } = await host.fork(other, 2);
  assert(host.clock.nowMs - started < 2000, `the other's fork took ${host.clock.nowMs - started} ms`);
  await host.verifyAll();
  assert.equal(await host.ask(other, `kill ${ticket}`), "ok");
  await host.until(() => guest.guest.programs === 1, "the flood's end");
  for (let round = 0; round < 200; round++) await host.round();
  const engine = host.agent?.agent.engine;
  assert(engine !== undefined);
  const open_ = engine.list().filter(({ state }) => state !== "ended");
  assert(open_.length <= 8, "no more tickets than a domain may have");
  for (const { ticket } of open_) await host.during(engine.kill(ticket));
  await assertNothingLeft(host, before);
  await host.stopAgent();
});

for (const suspend of ["ignores", "powers-off", "crashes"] as const) {
  Deno.test(`a guest that ${suspend} when it is to suspend: an error, and nothing is left`, async () => {
    const host = new SimHost();
    const guest = host.boot({ ram: RAM, suspend });
    const agent = await host.startAgent();
    const before = hostState(host);
    const { engine } = agent.agent;
    const { ticket } = await host.during(engine.requestTicket({ domain: guest.domid, clones: 2 }));
    host.msPerRound = 10;
    await assert.rejects(host.during(engine.clone(ticket)), { name: "EngineError", code: "cannot-suspend" });
    await host.during(engine.kill(ticket));
    if (suspend === "ignores") {
      await assertNothingLeft(host, before);
      await host.verifyAll();
    } else {
      // A toolstack takes it away.
      guest.guest.domain.destroy();
      await assertNothingLeft(host, { ...before, domids: [] });
    }
    await host.stopAgent();
  });
}

Deno.test("a guest that suspends long after it was given up goes on all the same", async () => {
  const host = new SimHost();
  const guest = host.boot({ ram: RAM, suspendDelaySteps: 400 });
  const agent = await host.startAgent({ suspendTimeoutMs: 100 });
  const before = hostState(host);
  const { engine } = agent.agent;
  const { ticket } = await host.during(engine.requestTicket({ domain: guest.domid, clones: 1 }));
  await assert.rejects(host.during(engine.clone(ticket)), { code: "cannot-suspend" });
  await host.until(() => guest.guest.domain.shutdownCode === 2, "the late suspend");
  await host.until(() => guest.guest.resumes === 1, "its end", 5000);
  await host.during(engine.kill(ticket));
  await assertNothingLeft(host, before);
  await host.verifyAll();
  await host.stopAgent();
});
