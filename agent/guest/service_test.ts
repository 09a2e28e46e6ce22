import assert from "node:assert/strict";
import { FakeEngine } from "../api/engine_fake.ts";
import { GuestService } from "./service.ts";
import { FakeClock, FakeStore, settle } from "./store_fake.ts";

const REQUEST = (domid: number) => `/local/domain/${domid}/data/snowflock/request`;
const ANSWER = (domid: number) => `/local/domain/${domid}/data/snowflock/answer`;

function world() {
  const store = new FakeStore();
  const engine = new FakeEngine();
  const clock = new FakeClock();
  store.introduce(7);
  store.introduce(8);
  const limits = { requestsPerSecond: 5, burst: 10 };
  const start = () => GuestService.start({ store, engine, clock, limits });
  const ask = async (domid: number, request: string) => {
    store.set(REQUEST(domid), request);
    await settle();
    return store.text(ANSWER(domid));
  };
  return { store, engine, clock, start, ask };
}

Deno.test("a guest's life: ticket, clone, exit, join", async () => {
  const { store, engine, start, ask } = world();
  await using service = await start();
  assert.deepEqual(service.domids, [7, 8]);
  assert.equal(await ask(7, "a request-ticket 2"), "a ok t1 2\n");
  assert.equal(await ask(7, "b clone t1"), "b ok 0\n");
  assert.deepEqual([...engine.nodes.values()], [
    { "data/snowflock/answer": "b ok 1\n" },
    { "data/snowflock/answer": "b ok 2\n" },
  ]);

  // Clone 2 comes up with its answer in place.
  store.nodes.set(ANSWER(21), new TextEncoder().encode("b ok 2\n"));
  store.introduce(21);
  await settle();
  assert.deepEqual(service.domids, [7, 8, 21]);
  store.set("/local/domain/21/data/snowflock/awake", "1");
  await settle();
  assert.deepEqual(engine.awake, [21]);
  // The client repeats the request that it forked in. It must not fork again.
  const calls = engine.calls.length;
  assert.equal(await ask(21, "b clone t1"), "b ok 2\n");
  assert.equal(engine.calls.length, calls);

  assert.equal(await ask(21, "c exit 3 some data\nin lines"), "c ok\n");
  engine.lose(20, "it crashed");
  assert.equal(await ask(7, "d join t1"), "d ok lines 2 0\n1 lost it crashed\n2 3 some data%0ain lines\n");
  assert.equal(await ask(7, "e join t1 2"), "e ok lines 1 0\n2 3 some data%0ain lines\n");
  assert.equal(await ask(7, "f kill t1"), "f ok\n");
});

Deno.test("a join waits, and gives way to the guest's other requests", async () => {
  const { engine, start, ask } = world();
  await using _service = await start();
  await ask(7, "a request-ticket 1");
  await ask(7, "b clone t1");
  assert.equal(await ask(7, "c join t1"), "b ok 0\n");
  assert.equal(await ask(7, "d kill t1"), "d ok\n");
  assert.ok(engine.calls.includes("kill t1"));
  assert.equal(await ask(7, "c join t1"), "c ok wait\n");
  assert.equal(await ask(7, "e join t1"), "e ok lines 1 0\n1 killed its ticket was killed\n");
});

Deno.test("a request is executed once, also by an agent that was started again", async () => {
  const { store, engine, start, ask } = world();
  {
    await using _service = await start();
    await ask(7, "a request-ticket 1");
    assert.equal(await ask(7, "a request-ticket 1"), "a ok t1 1\n");
    await ask(7, "b request-ticket 1");
    // The answer was overwritten before its reader came.
    assert.equal(await ask(7, "a request-ticket 1"), "a ok t1 1\n");
    await ask(7, "b request-ticket 1");
  }
  assert.equal(store.watchCount, 0);
  await using _again = await start();
  await settle();
  assert.equal(store.text(ANSWER(7)), "b ok t2 1\n");
  assert.deepEqual(engine.calls, ["requestTicket 7 1", "requestTicket 7 1"]);
});

Deno.test("bad input gets an error, and others do not notice", async () => {
  const { engine, start, ask } = world();
  await using _service = await start();
  await ask(8, "x request-ticket 1");
  assert.equal(await ask(7, "a clone t9"), "a error no-such-ticket There is no ticket t9\n");
  assert.equal(await ask(7, "b clone t1"), "b error not-yours Ticket t1 is another domain's\n");
  assert.match(await ask(7, "c request-ticket -1") ?? "", /^c error bad-count /);
  assert.match(await ask(7, "d exit 0") ?? "", /^d error not-yours /);
  assert.match(await ask(7, `e ${"x".repeat(65_536)}`) ?? "", /^e error bad-request The request has 65538 bytes/);
  assert.match(await ask(7, "\xff\x00") ?? "", /^- error bad-request /);
  engine.capacity = 0;
  assert.match(await ask(7, "f request-ticket 1") ?? "", /^f error no-memory /);
  assert.equal(await ask(8, "y clone t1"), "y ok 0\n");
});

Deno.test("an unexpected failure is told without its cause", async () => {
  const { engine, start, ask } = world();
  await using _service = await start();
  engine.kill = () => Promise.reject(new Error("secret"));
  assert.equal(await ask(7, "a kill t1"), "a error failed The agent failed; its log says why\n");
});

Deno.test("a guest that floods is slowed and told; another is not", async () => {
  const { store, engine, clock, start, ask } = world();
  await using _service = await start();
  for (let round = 0; round < 100; round++) {
    for (let n = 0; n < 100; n++) store.set(REQUEST(7), `r${round}n${n} kill t1`);
    await settle();
  }
  // No time went by: 10 tokens, of which the first look at two nodes took some.
  assert.ok(engine.calls.length <= 10, `${engine.calls.length} calls`);
  assert.equal(await ask(8, "y request-ticket 1"), "y ok t1 1\n");

  await clock.advance(200);
  assert.match(store.text(ANSWER(7)) ?? "", /^r99n99 error limit /);
  // The bucket fills again: 5 a second.
  const before = engine.calls.length;
  for (let n = 0; n < 50; n++) {
    store.set(REQUEST(7), `s${n} kill t1`);
    await clock.advance(40);
  }
  const served = engine.calls.length - before;
  assert.ok(served >= 8 && served <= 12, `${served} served in 2 s`);
});

Deno.test("a guest that dies in a request leaves nothing behind", async () => {
  const { store, engine, start, ask } = world();
  await using service = await start();
  await ask(7, "a request-ticket 1");
  const gate = Promise.withResolvers<void>();
  engine.gate = gate.promise;
  store.set(REQUEST(7), "b clone t1");
  await settle();
  store.release(7);
  await settle();
  assert.deepEqual(service.domids, [8]);
  gate.resolve();
  await settle();
  assert.deepEqual([...store.nodes.keys()].filter((path) => path.startsWith("/local/domain/7")), []);
});

Deno.test("a checkpoint answers its clones as well", async () => {
  const { engine, start, ask } = world();
  let told: Readonly<Record<string, string>> | undefined;
  const checkpoint = engine.checkpoint.bind(engine);
  engine.checkpoint = (domain, options) => {
    const clone = { ticket: "t", id: 4, name: "c", uuid: "u", host: "h", state: "shell", times: {} } as const;
    told = options?.nodes?.(clone);
    return checkpoint(domain, options);
  };
  await using _service = await start();
  assert.equal(await ask(7, "a checkpoint-parent"), "a ok t1\n");
  assert.deepEqual(told, { "data/snowflock/answer": "a ok 4\n" });
});
