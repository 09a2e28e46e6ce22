import assert from "node:assert/strict";
import { assertNothingLeft, hostState } from "./leftovers.ts";
import { SimHost } from "./sim_host.ts";

Deno.test("a guest forks into four: all see the same memory, go their own ways, and hand over their results", async () => {
  const host = new SimHost();
  const parent = host.boot({ ram: [{ first: 0, pages: 1024 }] });
  await host.run(parent, 0, parent.fill(0, parent.pages.slice(0, 600), { seed: 1, round: 1 }));
  const agent = await host.startAgent();
  const before = hostState(host);
  const held = agent.machine.heldResources;

  const { ticket, clones } = await host.fork(parent, 4);
  assert.deepEqual(clones.map(({ guest }) => guest.store?.read("data/snowflock/id")), ["1", "2", "3", "4"]);
  await host.verifyAll();

  for (const [index, workload] of [parent, ...clones].entries()) {
    await host.run(workload, 1, workload.fill(1, workload.pages.slice(100, 400), { seed: 10 + index, round: 2 }));
  }
  await host.verifyAll();

  for (const [index, clone] of clones.entries()) {
    assert.equal(await host.ask(parent, `join ${ticket} 1`), "ok wait");
    clone.guest.store?.write("data/snowflock/request", `x exit ${index} result ${index}`);
    await host.until(() => host.xen.find(clone.domid) === undefined, "the clone's end");
  }
  assert.equal(
    await host.ask(parent, `join ${ticket}`),
    "ok lines 4 0\n1 0 result 0\n2 1 result 1\n3 2 result 2\n4 3 result 3",
  );
  await assertNothingLeft(host, before);
  assert(agent.machine.heldResources - held <= 1, "but for a chunk of the page store");
  await host.verifyAll();
  await host.stopAgent();
});
