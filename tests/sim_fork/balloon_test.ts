import assert from "node:assert/strict";
import { assertNothingLeft, hostState } from "./leftovers.ts";
import { SimHost } from "./sim_host.ts";
import type { Workload } from "./workload.ts";

async function open() {
  const host = new SimHost();
  const parent = host.boot({ ram: [{ first: 0, pages: 256 }, { first: 1024, pages: 64 }] });
  await host.run(parent, 0, parent.fill(0, parent.pages, { seed: 1, round: 1 }));
  await host.startAgent();
  return { host, parent, before: hostState(host) };
}

/** What a balloon driver does: the pages are gone, and read as ones. */
function giveBack(workload: Workload, gfns: readonly number[]): void {
  assert.equal(workload.guest.domain.memory.decrease(gfns.map(BigInt)), gfns.length);
}

function grow(workload: Workload, gfns: readonly number[]): void {
  assert.equal(workload.guest.domain.memory.populate(gfns.map(BigInt), 0), gfns.length);
}

Deno.test("memory that comes or goes between the ticket and the fork: the fork is refused, another ticket is good", async () => {
  const { host, parent, before } = await open();
  for (const change of [() => giveBack(parent, [1030, 1031]), () => grow(parent, [2000, 2001, 2002])]) {
    const stale = await host.ticket(parent, 1);
    change();
    assert.match(await host.ask(parent, `clone ${stale}`), /^error ended .*memory/);
    assert.equal(await host.ask(parent, `kill ${stale}`), "ok");
  }
  await assertNothingLeft(host, { ...before });
  const { ticket, clones } = await host.fork(parent, 1);
  assert.equal(clones.length, 1);
  assert.equal(await host.ask(parent, `kill ${ticket}`), "ok");
  await assertNothingLeft(host, before);
  await host.stopAgent();
});

Deno.test("a parent that grows while it is held is forked again only after its release", async () => {
  const { host, parent, before } = await open();
  const { ticket } = await host.fork(parent, 1);
  grow(parent, [2000, 2001]);
  assert.match(await host.ask(parent, "request-ticket 1"), /^error busy .*memory/);
  assert.equal(await host.ask(parent, `kill ${ticket}`), "ok");
  await assertNothingLeft(host, before);
  const again = await host.fork(parent, 1);
  assert.equal(await host.ask(parent, `kill ${again.ticket}`), "ok");
  await assertNothingLeft(host, before);
  await host.stopAgent();
});

Deno.test("a parent gives nominated pages back: it is let go all the same, and only clones that need them are lost", async () => {
  const { host, parent, before } = await open();
  const { ticket, clones } = await host.fork(parent, 2);
  const [reader, other] = clones;
  assert(reader !== undefined && other !== undefined);
  giveBack(parent, [1040, 1041, 1042]);
  await host.run(other, 0, other.verify(0, other.pages.filter((gfn) => gfn < 1000)));
  reader.guest.spawn(0, reader.verify(0, [1040]));
  await host.until(() => host.xen.find(reader.domid) === undefined, "the clone's end");
  const info = host.agent?.agent.engine.show(ticket);
  assert(info !== undefined && "clones" in info);
  assert.deepEqual(info.clones.map(({ state }) => state), ["lost", "running"]);
  assert.deepEqual(other.faults, []);
  assert.equal(await host.ask(parent, `kill ${ticket}`), "ok");
  await assertNothingLeft(host, before);
  await host.stopAgent();
});
