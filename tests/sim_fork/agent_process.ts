/** A process of the agent on a simulated host: the engine, the memory thread and the guest service, as `agent/run.ts` joins them. */
import { Agent } from "../../agent/agent.ts";
import type { ForkEngineOptions } from "../../agent/fork/engine.ts";
import type { JournalFile } from "../../agent/fork/journal.ts";
import { guestStore } from "../../agent/guest_store.ts";
import { GuestService } from "../../agent/guest/service.ts";
import { openXen } from "../../hypercall/xen.ts";
import { openXenstore, type Xenstore } from "../../hypercall/xenstore/mod.ts";
import { Faults, openSimMachine, type SimMachine, type SimXen, type SimXenstore } from "../sim/mod.ts";
import { SimMemoryThread } from "./memory_thread.ts";
import type { SimClock } from "./sim_clock.ts";

export interface AgentSettings extends Partial<ForkEngineOptions> {
  readonly fill?: boolean;
  readonly arenaPages?: number;
  readonly faults?: Faults;
}

export interface AgentWorld {
  readonly xen: SimXen;
  readonly xenstore: SimXenstore;
  readonly clock: SimClock;
  readonly journal: JournalFile;
}

const LIMITS: ForkEngineOptions = { suspendTimeoutMs: 1000, ticketsPerDomain: 8, clonesPerTicket: 256 };

export class AgentProcess {
  readonly machine: SimMachine;
  readonly memory: SimMemoryThread;
  readonly #world: AgentWorld;
  readonly #store: Xenstore;
  readonly #settings: AgentSettings;
  readonly #stack = new DisposableStack();
  #agent: Agent | undefined;
  #guests: GuestService | undefined;

  /** Opens the machine; {@link start} is the rest. */
  constructor(world: AgentWorld, settings: AgentSettings) {
    this.#world = world;
    this.#settings = settings;
    this.machine = openSimMachine(world.xen, settings.faults ?? new Faults());
    this.#store = openXenstore(world.xenstore.connect(this.machine));
    const xen = this.#stack.use(openXen(this.machine.hypercalls));
    const { arenaPages = 16_384 } = settings;
    this.memory = this.#stack.use(new SimMemoryThread(this.machine, xen, { arenaPages }));
  }

  get agent(): Agent {
    if (this.#agent === undefined) throw new Error("the agent has not started");
    return this.#agent;
  }

  /** The journal, which a process that was killed writes no more. */
  get #journal(): JournalFile {
    const { journal } = this.#world;
    return {
      read: () => journal.read(),
      replace: (text) => {
        this.machine.checkAlive();
        journal.replace(text);
      },
    };
  }

  get started(): boolean {
    return this.#guests !== undefined;
  }

  get faults(): Faults {
    return this.machine.faults;
  }

  /** Resolves when guests can ask. */
  async start(): Promise<void> {
    const { clock } = this.#world;
    const time = clock.of(() => this.machine.killed);
    this.#agent = await Agent.start({
      machine: this.machine,
      xen: this.#stack.use(openXen(this.machine.hypercalls)),
      memory: this.memory.calls,
      store: this.#store,
      plumber: { exists: () => Promise.resolve(true), attach: () => Promise.resolve() },
      clock: time,
      journal: this.#journal,
    }, { host: "sim", fill: false, ...LIMITS, ...this.#settings });
    this.#guests = await GuestService.start({
      store: guestStore(this.#store),
      engine: this.#agent.engine,
      clock: time,
      limits: { requestsPerSecond: 100, burst: 20 },
    });
  }

  /** The end that SIGTERM asks for. */
  async stop(): Promise<void> {
    await this.#guests?.[Symbol.asyncDispose]();
    await this.#agent?.[Symbol.asyncDispose]();
    this.#stack.dispose();
    await this.#store[Symbol.asyncDispose]();
  }
}
