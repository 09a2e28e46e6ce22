/** One host's agent: everything that `snowflock agent` runs, put together over ports. `main.ts` gives it the real ones. */
import { getLogger } from "@logtape/logtape";
import type { Machine } from "../hypercall/ports.ts";
import type { Xen } from "../hypercall/xen_api.ts";
import type { CloneHost } from "./fork/clone_host.ts";
import { ForkEngine, type ForkEngineOptions, type ForkEngineParts } from "./fork/engine.ts";
import { pack, type Placement } from "./fork/placement.ts";
import { Journal, type JournalFile } from "./fork/journal.ts";
import { LocalHost } from "./fork/local_host.ts";
import { type FreePageFinder, Parents } from "./fork/parent.ts";
import { recover } from "./fork/recovery.ts";
import type { ShellPorts } from "./fork/shell.ts";
import type { Clock } from "./fork/timing.ts";
import type { Store } from "./fork/store.ts";
import type { VifPlumber } from "./fork/vif.ts";
import type { MemoryCalls } from "./memory/calls.ts";

const REFRESH_MS = 2000;

export interface AgentPorts {
  readonly machine: Machine;
  readonly xen: Xen;
  readonly memory: MemoryCalls;
  readonly store: Store;
  readonly plumber: VifPlumber;
  readonly clock: Clock;
  readonly journal: JournalFile;
  readonly freePages?: FreePageFinder;
  readonly placement?: Placement;
  /** Other hosts that clones may be on. */
  readonly remoteHosts?: readonly CloneHost[];
  /** Lets other hosts have pages of a snapshot. */
  readonly share?: NonNullable<ForkEngineParts["share"]>;
}

export interface AgentOptions extends ForkEngineOptions {
  readonly host: string;
  /** Bring in the rest of a clone's memory in the background, where a fork does not say. Default true. */
  readonly fill?: boolean;
}

/** The fork engine of this host, recovered and watching its domains. Disposing of it ends every ticket. */
export class Agent implements AsyncDisposable {
  readonly engine: ForkEngine;
  readonly local: LocalHost;
  readonly parents: Parents;
  readonly #memory: MemoryCalls;
  readonly #stack = new AsyncDisposableStack();
  readonly #log = getLogger(["snowflock", "agent"]);
  #sweeping: Promise<void> = Promise.resolve();
  #closed = false;

  private constructor(ports: AgentPorts, parts: ShellPorts, journal: Journal, options: AgentOptions) {
    this.#memory = ports.memory;
    this.parents = new Parents(
      {
        ...parts,
        holds: { addParent: (parent) => journal.addParent(parent), removeParent: (uuid) => journal.removeParent(uuid) },
      },
      ports.freePages,
    );
    this.local = new LocalHost(options.host, parts, journal, this.parents, options.fill ?? true);
    this.engine = new ForkEngine({
      local: this.local,
      hosts: [this.local, ...ports.remoteHosts ?? []],
      parents: this.parents,
      store: ports.store,
      clock: ports.clock,
      releaseSnapshot: (id) => ports.memory.releaseSnapshot(id),
      placement: ports.placement ?? pack,
      ...(ports.share === undefined ? {} : { share: ports.share }),
    }, options);
  }

  /** Undoes what an agent that died has left, then is ready for forks. Rejects if Xen or xenstored cannot be used. */
  static async start(ports: AgentPorts, options: AgentOptions): Promise<Agent> {
    const { xen, memory, store, plumber, clock } = ports;
    const parts: ShellPorts = { xen, foreignMemory: ports.machine.foreignMemory, store, memory, plumber, clock };
    const journal = new Journal(ports.journal);
    const agent = new Agent(ports, parts, journal, options);
    void agent.#followMemory();
    void agent.#refresh(clock);
    const recovered = await recover(parts, journal, agent.parents);
    if (recovered.ended + recovered.parents > 0) {
      agent.#log.warn("an earlier agent's domains were cleaned up", { ...recovered });
    }
    agent.#stack.use(await store.watch("@releaseDomain", () => void agent.sweep()));
    return agent;
  }

  /** Looks for domains that have ended. Calls that overlap follow one another. */
  sweep(): Promise<void> {
    return this.#sweeping = this.#sweeping.then(async () => {
      if (this.#closed) return;
      try {
        await this.parents.sweep();
        await this.local.sweep();
        await this.engine.sweep();
      } catch (error) {
        this.#log.error("domains that ended could not be cleaned up", { error });
      }
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.engine.shutDown();
    this.#closed = true;
    await this.#sweeping;
    await this.#stack.disposeAsync();
    await this.parents.settle();
  }

  /** Keeps the counters that `show` and the metrics give, and tries again what could not be cleaned up. */
  async #refresh(clock: Clock): Promise<void> {
    while (!this.#closed) {
      await clock.sleep(REFRESH_MS);
      await this.sweep();
      try {
        await this.engine.refresh();
      } catch (error) {
        this.#log.warn("counters could not be brought up to date", { error });
      }
    }
  }

  async #followMemory(): Promise<void> {
    while (!this.#closed) {
      try {
        for (const event of await this.#memory.nextEvents()) {
          if (event.kind === "suspended") await this.parents.onSuspended(event.domid);
          else if (this.local.cloneOf(event.domid) !== undefined) void this.local.lose(event.domid, event.reason);
          else this.#log.error("a parent's memory cannot be served", { domid: event.domid, reason: event.reason });
        }
      } catch (error) {
        if (this.#closed) return;
        this.#log.error("the memory thread does not answer", { error });
        return;
      }
    }
  }
}
