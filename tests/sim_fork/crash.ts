/** One fork with something going wrong at one of its steps; what a test must find afterwards. */
import assert from "node:assert/strict";
import { type Fate, Faults, type Step } from "../sim/mod.ts";
import type { AgentProcess } from "./agent_process.ts";
import { assertNothingLeft, type HostState, hostState } from "./leftovers.ts";
import { SimHost } from "./sim_host.ts";
import type { Workload } from "./workload.ts";

const RAM = [{ first: 0, pages: 192 }];
const CLONES = 2;

/** A host with a guest that works while it is forked, and an agent whose steps are counted from its first request on. */
export class Scene {
  readonly host = new SimHost();
  readonly faults = new Faults();
  readonly parent: Workload;
  agent: AgentProcess | undefined;
  before: HostState | undefined;
  /** Names of steps to which nothing happens. */
  readonly spared = new Set<string>();
  /** The step that met its fate. */
  met: string | undefined;
  /** The steps before the fork. */
  base = 0;

  private constructor() {
    this.parent = this.host.boot({ ram: RAM });
  }

  static async open(): Promise<Scene> {
    const scene = new Scene();
    const { host, parent } = scene;
    await host.run(parent, 0, parent.fill(0, parent.pages.slice(0, 40), { seed: 1, round: 1 }));
    parent.guest.spawn(1, parent.churn(1, parent.pages.slice(40, 60), 2));
    scene.agent = await host.startAgent({ faults: scene.faults });
    scene.before = hostState(host);
    scene.base = scene.faults.steps;
    return scene;
  }

  /** Asks for a ticket, clones it and ends it again, as far as that goes. The steps after which each had its answer. */
  async fork(): Promise<{ ticket: number; clone: number; end: number }> {
    const { host, parent, faults } = this;
    const done = (): number => faults.steps - this.base;
    const ticket = await host.ask(parent, `request-ticket ${CLONES}`);
    const steps = { ticket: done(), clone: 0, end: 0 };
    const [, name] = /^ok (\S+) \d+$/.exec(ticket) ?? [];
    if (name === undefined) return steps;
    await host.ask(parent, `clone ${name}`);
    steps.clone = done();
    await host.ask(parent, `kill ${name}`);
    steps.end = done();
    return steps;
  }

  get engine() {
    assert(this.agent !== undefined);
    return this.agent.agent.engine;
  }

  /** `fate` for the step with this number of the fork, from 1. */
  meet(number: number, fate: Fate): void {
    this.faults.onStep = (step: Step) => {
      if (step.number !== this.base + number || this.spared.has(step.name)) return undefined;
      this.met = step.name;
      return fate;
    };
  }

  /** The parent goes on and can be forked again, and nothing is left of what was before. */
  async assertUnharmed(): Promise<void> {
    const { host, parent, before } = this;
    assert(before !== undefined);
    // What failed is tried again every few seconds.
    host.msPerRound = 20;
    await assertNothingLeft(host, before);
    await host.verifyAll();
    const rounds = parent.written.get(parent.pages[40] ?? 0)?.round ?? 0;
    await host.until(() => (parent.written.get(parent.pages[40] ?? 0)?.round ?? 0) > rounds, "the parent's work");
    const { ticket, clones } = await host.fork(parent, 1);
    assert.equal(clones.length, 1);
    await host.verifyAll();
    assert.equal(await host.ask(parent, `kill ${ticket}`), "ok");
    await assertNothingLeft(host, before);
    await host.verifyAll();
    await host.stopAgent();
  }
}
