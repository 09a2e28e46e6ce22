/** Forks on one real Xen host, with guests that check themselves. One lab for all steps: a boot costs more than a step. */
import assert from "node:assert/strict";
import { type Guest, Lab } from "../lab/mod.ts";
import { LabAgent } from "./lab_agent.ts";
import { expectInventory, inventory } from "./leftovers.ts";
import { cloneGuest, forkGuest, type ForkResult, verifyAndJoin } from "./run_fork.ts";

function expectWhole({ parent, clones }: ForkResult, count: number): void {
  assert.equal(parent.mismatches, 0, "the parent found a mismatch");
  assert.ok(parent.rounds > 0);
  assert.equal(clones.length, count);
  for (const { id, mismatches, rounds, status, data } of clones) {
    assert.equal(mismatches, 0, `clone ${id} found a mismatch`);
    assert.ok(rounds > 0, `clone ${id} has not checked itself`);
    assert.equal(status, 10 + id);
    assert.equal(data, `clone ${id} of ${count}`);
  }
}

/** The parent still answers, and its self-check goes on and stays silent. */
async function expectRunning(guest: Guest): Promise<void> {
  const before = await guest.selfcheck();
  assert.ok(before !== undefined);
  const deadline = performance.now() + 120_000;
  while (true) {
    const now = await guest.selfcheck();
    assert.equal(now?.mismatches, 0);
    if (now.rounds > before.rounds) break;
    assert.ok(performance.now() < deadline, "the parent's self-check stands still");
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
  assert.equal((await guest.shell("echo here", { timeoutMs: 60_000 })).output.trim(), "here");
}

Deno.test("lab: a machine forks on one host", async (t) => {
  await using lab = await Lab.up({ hosts: 1 });
  await using stack = new AsyncDisposableStack();
  const host = lab.host(1);
  const agent = stack.use(await LabAgent.start(host));
  const guest = await host.createGuest({ name: "parent", kind: "selfcheck", memoryMib: 128, vcpus: 2 });
  await guest.shell("sf init");
  const before = await inventory(host);

  await t.step("the host has what it takes", async () => {
    const report = await agent.call<{ healthy: boolean }>("doctor");
    assert.equal(report.healthy, true, JSON.stringify(report));
  });

  await t.step("parent and 4 clones check themselves; join collects", async () => {
    const fork = await forkGuest(agent, guest, 4);
    const result = await verifyAndJoin(agent, lab.hosts, guest, fork, 60);
    console.log(JSON.stringify(result));
    expectWhole(result, 4);
    await expectInventory(host, before);
  });

  await t.step("a second fork while the first clones live, and a fork of a clone", async () => {
    const first = await forkGuest(agent, guest, 1);
    const second = await forkGuest(agent, guest, 1);
    const [clone] = second.clones;
    assert.ok(clone !== undefined);
    const copy = cloneGuest(lab.hosts, clone);
    const third = await forkGuest(agent, copy, 2);
    expectWhole(await verifyAndJoin(agent, lab.hosts, copy, third, 30), 2);
    expectWhole(await verifyAndJoin(agent, lab.hosts, guest, second, 5), 1);
    expectWhole(await verifyAndJoin(agent, lab.hosts, guest, first, 5), 1);
    await expectInventory(host, before);
  });

  await t.step("a clone that crashes is reported, and leaves nothing", async () => {
    const fork = await forkGuest(agent, guest, 2);
    const [victim] = fork.clones;
    assert.ok(victim !== undefined);
    cloneGuest(lab.hosts, victim).shell("echo 1 > /proc/sys/kernel/sysrq; echo c > /proc/sysrq-trigger").catch(
      () => {},
    );
    const clones = await agent.until(fork.ticket, (list) => list.some(({ state }) => state === "lost"), 90_000);
    assert.deepEqual(clones.map(({ state }) => state).sort(), ["lost", "running"]);
    assert.match(clones.find(({ state }) => state === "lost")?.reason ?? "", /crashed/);
    await agent.api.kill(fork.ticket);
    await expectInventory(host, before);
    await expectRunning(guest);
  });

  await t.step("bad requests are errors, and change nothing", async () => {
    for (const count of ["0", "-1", "100000", "x", "1e3", ""]) {
      const answer = await guest.shell(`sf request-ticket ${count}`, { timeoutMs: 30_000 });
      assert.notEqual(answer.status, 0, `${count} was granted: ${answer.output}`);
    }
    for (const command of ["clone t000000000000", "join t000000000000", "kill nonsense", "clone ../x"]) {
      const answer = await guest.shell(`sf ${command}`, { timeoutMs: 30_000 });
      assert.notEqual(answer.status, 0, `${command}: ${answer.output}`);
    }
    assert.notEqual((await guest.shell("sf exit 0", { timeoutMs: 30_000 })).status, 0, "a parent is no clone");
    const other = await host.createGuest({ name: "other", memoryMib: 96 });
    const ticket = (await agent.api.requestTicket({ domain: "parent", clones: 1 })).ticket;
    const stolen = await other.shell(`sf clone ${ticket}`, { timeoutMs: 30_000 });
    assert.notEqual(stolen.status, 0, `a ticket of another domain was taken: ${stolen.output}`);
    await agent.api.kill(ticket);
    // Paused, it cannot suspend: the fork fails in time, and the guest runs on.
    const held = (await agent.api.requestTicket({ domain: "other", clones: 1 })).ticket;
    await host.run(`xl pause ${other.domid}`);
    await assert.rejects(agent.api.clone(held), /did not suspend/);
    await host.run(`xl unpause ${other.domid}`);
    await agent.api.kill(held);
    assert.equal((await other.shell("echo on", { timeoutMs: 60_000 })).output.trim(), "on");
    await other.destroy();
    await expectInventory(host, before);
  });

  await t.step("an agent that is killed loses no parent and leaves no clone", async () => {
    const stages: [string, () => Promise<void>][] = [
      ["with shells", async () => void await agent.api.requestTicket({ domain: "parent", clones: 2 })],
      ["in the middle of a fork", async () => {
        const { ticket } = await agent.api.requestTicket({ domain: "parent", clones: 2 });
        agent.api.clone(ticket).catch(() => {});
        await new Promise((resolve) => setTimeout(resolve, 700));
      }],
      ["with clones", async () => void await forkGuest(agent, guest, 2)],
    ];
    for (const [stage, reach] of stages) {
      await reach();
      await agent.end("KILL");
      await agent.run();
      try {
        await expectInventory(host, before, 90_000);
        await expectRunning(guest);
      } catch (error) {
        throw new Error(`killed ${stage}: ${await agent.log()}`, { cause: error });
      }
    }
  });

  await t.step("after all that it forks as before; the agent's end leaves the parent running", async () => {
    const fork = await forkGuest(agent, guest, 2);
    expectWhole(await verifyAndJoin(agent, lab.hosts, guest, fork, 20), 2);
    await forkGuest(agent, guest, 1);
    await agent.end("TERM");
    await expectInventory(host, before);
    await expectRunning(guest);
  });
});
