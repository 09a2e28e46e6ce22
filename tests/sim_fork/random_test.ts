import assert from "node:assert/strict";
import { assertNothingLeft, hostState } from "./leftovers.ts";
import { SimHost } from "./sim_host.ts";
import type { Workload } from "./workload.ts";

const STEPS = 25;
const MACHINES_MAX = 9;
const BUDGET_MS = 6000;

/** mulberry32. */
function random(seed: number): (below: number) => number {
  let state = seed >>> 0;
  return (below) => {
    state = (state + 0x6d2b79f5) >>> 0;
    let value = Math.imul(state ^ (state >>> 15), 1 | state);
    value = (value + Math.imul(value ^ (value >>> 7), 61 | value)) ^ value;
    return ((value ^ (value >>> 14)) >>> 0) % below;
  };
}

/** Whatever may happen to a family, in an order that follows from the seed; after each step every page of every machine is looked at. */
async function story(seed: number): Promise<void> {
  const below = random(seed);
  const host = new SimHost();
  const roots = [0, 1].map(() => host.boot({ ram: [{ first: 0, pages: 128 + below(100) }], vcpus: 1 + below(4) }));
  let round = 1;
  const fill = (workload: Workload) => {
    const first = below(workload.pages.length);
    const pages = workload.pages.slice(first, first + 1 + below(60));
    const vcpu = below(workload.guest.domain.vcpus.length);
    return host.run(workload, vcpu, workload.fill(vcpu, pages, { seed: 1 + seed, round: round++ }));
  };
  for (const root of roots) await fill(root);
  await host.startAgent();
  const before = hostState(host);
  const live = () => host.workloads.filter(({ guest }) => guest.alive);
  const pick = (): Workload => {
    const all = live();
    const one = all[below(all.length)];
    assert(one !== undefined);
    return one;
  };
  const engine = () => {
    assert(host.agent !== undefined);
    return host.agent.agent.engine;
  };
  for (let step = 0; step < STEPS; step++) {
    const workload = pick();
    switch (below(8)) {
      case 0:
      case 1:
      case 2:
        if (live().length < MACHINES_MAX) await host.fork(workload, 1 + below(3));
        break;
      case 3:
      case 4:
        await fill(workload);
        break;
      case 5: {
        const open = engine().list().filter(({ state }) => state !== "ended");
        const one = open[below(Math.max(1, open.length))];
        if (one !== undefined) await host.during(engine().kill(one.ticket));
        break;
      }
      case 6:
        if (host.booted.has(workload.domid)) break;
        if (below(2) === 0) workload.guest.store?.write("data/snowflock/request", `s${step} exit ${step}`);
        else workload.guest.domain.shutdown(3);
        await host.until(() => host.xen.find(workload.domid) === undefined, "a clone's end");
        break;
      case 7:
        if (below(3) > 0) break;
        host.agent?.machine.kill();
        await host.startAgent();
        await assertNothingLeft(host, before);
    }
    await host.verifyAll();
  }
  for (const { ticket } of engine().list()) await host.during(engine().kill(ticket));
  await assertNothingLeft(host, before);
  await host.verifyAll();
  await host.stopAgent();
}

Deno.test("families live through anything in any order", async () => {
  const given = Deno.env.get("SIM_FORK_STORY");
  const first = given === undefined ? Date.now() % 1_000_000 : Number(given);
  const end = performance.now() + BUDGET_MS;
  for (let seed = first; seed === first || (given === undefined && performance.now() < end); seed++) {
    try {
      await story(seed);
    } catch (cause) {
      throw new Error(`SIM_FORK_STORY=${seed}`, { cause });
    }
  }
});
