/** One simulated host with guests and, most of the time, an agent. A test advances it round by round. */
import assert from "node:assert/strict";
import { setImmediate } from "node:timers";
import type { JournalFile } from "../../agent/fork/journal.ts";
import {
  type BootOptions,
  type GuestOptions,
  GuestStore,
  type Program,
  SimGuest,
  SimXen,
  type SimXenOptions,
  SimXenstore,
} from "../sim/mod.ts";
import { AgentProcess, type AgentSettings, type AgentWorld } from "./agent_process.ts";
import { SimClock } from "./sim_clock.ts";
import { Workload } from "./workload.ts";

const ROUNDS_MAX = 50_000;
/** Nodes that a toolstack makes for its first domain, and leaves. */
const HOST_NODES = ["/vm", ...["console", "vif"].map((type) => `/local/domain/0/backend/${type}`)];
const DEFAULT_RAM = [{ first: 0, pages: 512 }];

/** The journal's file: lives on when the agent dies. */
class JournalInMemory implements JournalFile {
  text: string | undefined;
  read(): string | undefined {
    return this.text;
  }
  replace(text: string): void {
    this.text = text;
  }
}

export class SimHost implements AgentWorld {
  readonly xen: SimXen;
  readonly xenstore: SimXenstore;
  readonly clock = new SimClock();
  readonly journal = new JournalInMemory();
  readonly workloads: Workload[] = [];
  /** Domains that were booted, not cloned. */
  readonly booted = new Set<number>();
  /** How much time each round takes. */
  msPerRound = 1;
  agent: AgentProcess | undefined;
  /** What a clone does first, once its kernel runs. */
  onClone: ((clone: Workload) => void) | undefined;
  #sequence = 0;

  constructor(options: SimXenOptions = {}) {
    this.xen = new SimXen(options);
    this.xenstore = new SimXenstore(this.xen);
    const toolstack = new GuestStore(this.xenstore.connectToolstack());
    for (const path of HOST_NODES) toolstack.write(path, "");
    toolstack.close();
  }

  /** A process that has not started to serve. */
  openAgent(settings: AgentSettings = {}): AgentProcess {
    return this.agent = new AgentProcess(this, settings);
  }

  async startAgent(settings: AgentSettings = {}): Promise<AgentProcess> {
    const agent = this.openAgent(settings);
    await this.during(agent.start());
    return agent;
  }

  async stopAgent(): Promise<void> {
    const { agent } = this;
    if (agent === undefined) return;
    await this.during(agent.stop());
    this.agent = undefined;
    assert.equal(agent.memory.died, undefined);
    assert.equal(agent.machine.heldResources, 0, "the agent holds nothing at its end");
  }

  boot(options: BootOptions & GuestOptions = {}): Workload {
    const ram = options.ram ?? DEFAULT_RAM;
    const workload = new Workload(this.xen, SimGuest.boot(this.xen, this.xenstore, { ...options, ram }), ram);
    this.workloads.push(workload);
    this.booted.add(workload.domid);
    return workload;
  }

  /** Guests run, then the agent does. */
  async round(): Promise<void> {
    for (const { guest } of this.workloads) guest.step();
    for (const workload of this.workloads) workload.noteSuspend();
    this.#adopt();
    this.agent?.memory.turn();
    this.clock.advance(this.msPerRound);
    await new Promise<void>((resolve) => setImmediate(() => resolve()));
  }

  async until(done: () => boolean, what: string, rounds = ROUNDS_MAX): Promise<void> {
    for (let round = 0; round < rounds; round++) {
      if (done()) return;
      await this.round();
    }
    assert.fail(`${what}: not after ${rounds} rounds`);
  }

  /** Lets the host run until the promise is settled. */
  async during<T>(promise: Promise<T>, rounds = ROUNDS_MAX): Promise<T> {
    let settled = false;
    const settle = () => settled = true;
    promise.then(settle, settle);
    await this.until(() => settled, "what was asked for", rounds);
    return await promise;
  }

  /** Runs a program in a guest to its end. */
  async run<T>(workload: Workload, vcpu: number, program: Program<T>, rounds = ROUNDS_MAX): Promise<T> {
    const ended: { value: T }[] = [];
    workload.guest.spawn(
      vcpu,
      (function* () {
        ended.push({ value: yield* program });
      })(),
    );
    await this.until(() => ended.length > 0, `a program in domain ${workload.domid}`, rounds);
    const [first] = ended;
    assert(first !== undefined);
    return first.value;
  }

  /** What `sf` does: a request of a guest, and its answer without the number. */
  async ask(workload: Workload, request: string): Promise<string> {
    const sequence = `q${++this.#sequence}`;
    const answer = await this.run(workload, 0, workload.guest.ask(sequence, request));
    return answer.slice(sequence.length + 1).trimEnd();
  }

  /** `sf request-ticket N`: the ticket's name. */
  async ticket(workload: Workload, clones: number): Promise<string> {
    const answer = await this.ask(workload, `request-ticket ${clones}`);
    const [, ticket] = /^ok (\S+) (\d+)$/.exec(answer) ?? [];
    assert(ticket !== undefined, `request-ticket: ${answer}`);
    return ticket;
  }

  /** `sf request-ticket` and `sf clone`: the clones, once their kernels run. */
  async fork(workload: Workload, clones: number): Promise<{ ticket: string; clones: Workload[] }> {
    const ticket = await this.ticket(workload, clones);
    const before = this.workloads.length;
    assert.equal(await this.ask(workload, `clone ${ticket}`), "ok 0");
    await this.until(() => this.workloads.length === before + clones, "clones start");
    const made = this.workloads.slice(before);
    await this.until(() => made.every(({ guest }) => guest.restores === 1 || guest.panic !== undefined), "clones wake");
    for (const { guest } of made) assert.equal(guest.panic, undefined);
    return { ticket, clones: made };
  }

  /** Every guest that runs looks at all of its pages. */
  async verifyAll(): Promise<void> {
    await Promise.all(this.workloads.filter(({ guest }) => guest.alive).map((each) => this.#verify(each)));
  }

  #verify(workload: Workload): Promise<void> {
    let done = false;
    workload.guest.spawn(
      workload.guest.domain.vcpus.length - 1,
      (function* () {
        yield* workload.verify(workload.guest.domain.vcpus.length - 1);
        done = true;
      })(),
    );
    return this.#shared(() => done || !workload.guest.alive).then(() => {
      assert(done, `domain ${workload.domid} ended while it looked at its pages`);
      assert.deepEqual(workload.faults, []);
      assert.deepEqual(workload.guest.wrongPages, []);
    });
  }

  #driving: Promise<void> | undefined;

  /** Several waits at once, on the same rounds. */
  async #shared(done: () => boolean): Promise<void> {
    for (let round = 0; !done(); round++) {
      assert(round < ROUNDS_MAX, "a guest waits for a page that never comes");
      this.#driving ??= this.round().finally(() => this.#driving = undefined);
      await this.#driving;
    }
  }

  /** Clones that have begun to run get a guest. */
  #adopt(): void {
    const known = new Set(this.workloads.map(({ domid }) => domid));
    for (const domain of this.xen.domains()) {
      const [boot] = domain.vcpus;
      if (known.has(domain.domid) || boot === undefined || !domain.runs(boot)) continue;
      // Nobody serves the clones of an agent that died.
      if (this.agent === undefined || this.agent.machine.killed || !this.agent.started) continue;
      const parent = this.#parentOf(domain.domid);
      assert(parent?.atSuspend !== undefined, `domain ${domain.domid} runs and is nobody's clone`);
      const guest = SimGuest.adopt(this.xen, this.xenstore, domain.domid, {
        onRestored: () => {
          guest.store?.write("data/snowflock/awake", "1");
          this.onClone?.(clone);
        },
      });
      const clone = new Workload(this.xen, guest, parent.ram, parent.atSuspend);
      this.workloads.push(clone);
    }
  }

  #parentOf(domid: number): Workload | undefined {
    const engine = this.agent?.agent.engine;
    const clone = engine?.show(`${domid}`);
    const ticket = clone === undefined ? undefined : engine?.show(clone.ticket);
    if (ticket === undefined || !("parent" in ticket)) return undefined;
    return this.workloads.findLast((each) => each.domid === ticket.parent.domid);
  }
}
