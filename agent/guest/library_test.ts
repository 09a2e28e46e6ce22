import assert from "node:assert/strict";
import { EngineError } from "../api/engine.ts";
import { FakeEngine } from "../api/engine_fake.ts";
import { Guest, type GuestLink } from "./library.ts";
import { domainPath } from "./nodes.ts";
import { GuestService } from "./service.ts";
import { FakeClock, FakeStore } from "./store_fake.ts";

/** A guest's view of the store; a fork moves it to another domain. */
function link(store: FakeStore, domid: number): GuestLink & { domid: number } {
  return {
    domid,
    read(path) {
      return Promise.resolve(store.text(`${domainPath(this.domid)}/${path}`));
    },
    write(path, value) {
      store.set(`${domainPath(this.domid)}/${path}`, value);
      return Promise.resolve();
    },
  };
}

Deno.test("a program's fork, in the parent and in a clone", async () => {
  const store = new FakeStore();
  const engine = new FakeEngine();
  store.introduce(7);
  store.introduce(8);
  await using _service = await GuestService.start({ store, engine, limits: { requestsPerSecond: 100, burst: 100 } });
  const inParent = new Guest(link(store, 7));
  assert.equal(await inParent.id(), 0);
  assert.deepEqual(await inParent.requestTicket(2), { ticket: "t1", granted: 2 });
  assert.equal(await inParent.clone("t1"), 0);

  // The same call, with the machine forked in its middle.
  const moving = link(store, 8);
  const clone = engine.clone.bind(engine);
  engine.clone = async (ticket, options) => {
    const report = await clone(ticket, options);
    const first = report.clones[0];
    assert.ok(first?.domid !== undefined);
    for (const [path, value] of Object.entries(engine.nodes.get(first.name) ?? {})) {
      store.set(`${domainPath(first.domid)}/${path}`, value);
    }
    store.set(`${domainPath(first.domid)}/data/snowflock/id`, "1");
    store.introduce(first.domid);
    moving.domid = first.domid;
    return report;
  };
  const woken: number[] = [];
  const inClone = new Guest(moving, { onWake: (id) => Promise.resolve(void woken.push(id)) });
  assert.deepEqual(await inClone.createClones(1), { ticket: "t2", id: 1 });
  assert.deepEqual(woken, [1]);
  assert.equal(await inClone.id(), 1);
  assert.equal(store.text(`${domainPath(moving.domid)}/data/snowflock/awake`), "1");
  await inClone.exit(9, "some\ndata 5%");
  assert.deepEqual(await new Guest(link(store, 8)).join("t2"), [
    { id: 1, state: "exited", status: 9, data: "some\ndata 5%" },
  ]);
  await inParent.kill("t1");
  const reason = "its ticket was killed";
  assert.deepEqual(await inParent.join("t1"), [
    { id: 1, state: "killed", data: reason },
    { id: 2, state: "killed", data: reason },
  ]);
});

Deno.test("what the agent refuses keeps its code", async () => {
  const store = new FakeStore();
  store.introduce(7);
  await using _service = await GuestService.start({ store, engine: new FakeEngine() });
  const guest = new Guest(link(store, 7));
  const code = (code: string) => (error: unknown) => error instanceof EngineError && error.code === code;
  await assert.rejects(guest.clone("t9"), code("no-such-ticket"));
  await assert.rejects(guest.requestTicket(0), code("bad-count"));
  await assert.rejects(guest.exit(0), code("not-yours"));
});

Deno.test("without an agent a call ends in time, having asked again", async () => {
  const store = new FakeStore();
  const clock = new FakeClock();
  const guest = link(store, 7);
  const written: string[] = [];
  const write = guest.write.bind(guest);
  guest.write = (path, value) => {
    written.push(value);
    return write(path, value);
  };
  store.set(`${domainPath(7)}/data/snowflock/answer`, "other ok 0\n");
  const call = new Guest(guest, { clock, sequence: () => "s1", timeoutMs: 12_000 }).clone("t1");
  const rejected = assert.rejects(call, (error) => error instanceof EngineError && error.code === "timeout");
  await clock.advance(13_000);
  await rejected;
  assert.deepEqual(written, ["s1 clone t1", "s1 clone t1", "s1 clone t1"]);
});
