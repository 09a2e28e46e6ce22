/** Prometheus metrics of the engine. Gauges are read when they are asked for; the rest follows the engine's events. */
import { Counter, Gauge, Histogram, Registry } from "prom-client";
import type { CloneState, Engine, TicketState } from "./engine.ts";

const MS_BUCKETS = [10, 25, 50, 100, 200, 400, 800, 1600, 3200, 6400, 12_800];
const STAGES = ["pause", "suspend", "capture", "nominate", "resume", "clone"] as const;
const TICKET_STATES: readonly TicketState[] = ["ready", "cloned", "ended"];
const CLONE_STATES: readonly CloneState[] = ["shell", "restoring", "running", "exited", "killed", "lost"];
/** Kinds of memory counters told; the engine has a few dozen. */
const MAX_COUNTERS = 64;

export class Metrics implements Disposable {
  readonly registry = new Registry();
  readonly #requests: Counter<"operation" | "status">;
  readonly #subscription: Disposable;

  constructor(engine: Engine, version: string) {
    const registers = [this.registry];
    new Gauge({ name: "snowflock_info", help: "The agent", labelNames: ["version"], registers }).set({ version }, 1);
    this.#requests = new Counter({
      name: "snowflock_api_requests_total",
      help: "Calls of the API, by operation and HTTP status",
      labelNames: ["operation", "status"],
      registers,
    });
    const stages = new Histogram({
      name: "snowflock_fork_stage_milliseconds",
      help: "Stages of forks; pause is how long the parent stood still, clone the whole",
      labelNames: ["stage"],
      buckets: MS_BUCKETS,
      registers,
    });
    const forks = new Counter({ name: "snowflock_forks_total", help: "Forks that were done", registers });
    const changes = new Counter({
      name: "snowflock_clone_changes_total",
      help: "Clones that came into a state",
      labelNames: ["state"],
      registers,
    });
    this.#subscription = engine.on((event) => {
      if (event.type === "clone") changes.inc({ state: event.clone.state });
      if (event.type !== "fork") return;
      forks.inc();
      for (const stage of STAGES) stages.observe({ stage }, event.report[`${stage}Ms`]);
    });
    new Gauge({
      name: "snowflock_tickets",
      help: "Tickets known, by state",
      labelNames: ["state"],
      registers,
      collect() {
        const tickets = engine.list();
        for (const state of TICKET_STATES) {
          this.set({ state }, tickets.filter((ticket) => ticket.state === state).length);
        }
      },
    });
    new Gauge({
      name: "snowflock_clones",
      help: "Clones of the tickets known, by state",
      labelNames: ["state"],
      registers,
      collect() {
        const clones = engine.list().flatMap((ticket) => ticket.clones);
        for (const state of CLONE_STATES) this.set({ state }, clones.filter((clone) => clone.state === state).length);
      },
    });
    new Gauge({
      name: "snowflock_clone_memory",
      help: "Counters of the memory of running clones, summed",
      labelNames: ["counter"],
      registers,
      collect() {
        this.reset();
        const sums = new Map<string, number>();
        for (const clone of engine.list().flatMap((ticket) => ticket.clones)) {
          if (clone.state !== "running") continue;
          for (const [counter, value] of Object.entries(clone.memory ?? {})) {
            if (sums.size < MAX_COUNTERS || sums.has(counter)) sums.set(counter, (sums.get(counter) ?? 0) + value);
          }
        }
        for (const [counter, value] of sums) this.set({ counter }, value);
      },
    });
  }

  /** Counts a call. */
  request(operation: string, status: number): void {
    this.#requests.inc({ operation, status: String(status) });
  }

  /** In Prometheus' text format. */
  text(): Promise<string> {
    return this.registry.metrics();
  }

  [Symbol.dispose](): void {
    this.#subscription[Symbol.dispose]();
    this.registry.clear();
  }
}
