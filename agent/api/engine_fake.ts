/** An engine for tests of its callers: tickets and clones that exist in memory only, with the errors of the real one. */
import {
  type CallOptions,
  type CloneInfo,
  type CloneOptions,
  type CloneState,
  type DomainSummary,
  type Engine,
  EngineError,
  type EngineEvent,
  type ForkReport,
  type Identity,
  type JoinOptions,
  MAX_CLONES,
  type NodeOptions,
  type TicketInfo,
  type TicketRequest,
  type TicketState,
} from "./engine.ts";

interface Entry {
  parent: { domid: number; name: string };
  state: TicketState;
  clones: CloneInfo[];
}

export class FakeEngine implements Engine {
  /** Domains that there are, by domid. */
  readonly parents = new Map<number, string>([[7, "web"], [8, "db"]]);
  /** Most clones granted to a ticket. */
  capacity = 100;
  /** Nodes that a fork gave each clone, by its name. */
  readonly nodes = new Map<string, Readonly<Record<string, string>>>();
  /** What was called, in order. */
  readonly calls: string[] = [];
  readonly awake: number[] = [];
  /** Where set, `clone` waits for it after its clones run. */
  gate: Promise<void> | undefined;
  readonly #tickets = new Map<string, Entry>();
  readonly #listeners = new Set<(event: EngineEvent) => void>();
  #waiters: (() => void)[] = [];
  #next = 1;
  #nextDomid = 20;

  requestTicket({ domain, clones }: TicketRequest): Promise<TicketInfo> {
    this.calls.push(`requestTicket ${domain} ${clones}`);
    return attempt(() => {
      const parent = this.#parent(domain);
      if (!Number.isInteger(clones) || clones < 1 || clones > MAX_CLONES) {
        throw new EngineError("bad-count", `The number of clones must be 1..${MAX_CLONES}`);
      }
      if (this.capacity === 0) throw new EngineError("no-memory", "No host has memory for a shell");
      const ticket = `t${this.#next++}`;
      const granted = Math.min(clones, this.capacity);
      this.#tickets.set(ticket, {
        parent,
        state: "ready",
        clones: Array.from({ length: granted }, (_, index) => ({
          ticket,
          id: index + 1,
          name: `${parent.name}-${ticket}-${index + 1}`,
          uuid: `00000000-0000-4000-8000-${String(this.#nextDomid).padStart(12, "0")}`,
          host: "h1",
          domid: this.#nextDomid++,
          state: "shell",
          times: { shellMs: 3 },
        })),
      });
      return this.#changed(ticket);
    });
  }

  async clone(ticket: string, options: CloneOptions = {}): Promise<ForkReport> {
    this.calls.push(`clone ${ticket}`);
    const entry = this.#owned(ticket, options);
    if (entry.state !== "ready") throw new EngineError("ended", `Ticket ${ticket} was used`);
    entry.state = "cloned";
    for (const clone of entry.clones) {
      this.nodes.set(clone.name, options.nodes?.(clone) ?? {});
      this.#set(clone, "running", { times: { ...clone.times, restoreMs: 5, startedMs: 9 } });
    }
    await this.gate;
    const report = {
      ticket,
      pauseMs: 10,
      suspendMs: 4,
      captureMs: 3,
      nominateMs: 2,
      resumeMs: 1,
      descriptorBytes: 4096,
      cloneMs: 20,
      clones: [...entry.clones],
    };
    for (const listener of this.#listeners) listener({ type: "fork", report });
    return report;
  }

  async join(ticket: string, options: JoinOptions = {}): Promise<readonly CloneInfo[]> {
    this.calls.push(`join ${ticket}`);
    const entry = this.#owned(ticket, options);
    const limit = options.timeoutMs === undefined ? undefined : AbortSignal.timeout(options.timeoutMs);
    while (entry.clones.some((clone) => ["shell", "restoring", "running"].includes(clone.state))) {
      if (limit?.aborted) throw new EngineError("timeout", `Clones of ${ticket} run on`);
      if (options.signal?.aborted) throw new EngineError("aborted", "The caller gave up");
      await new Promise<void>((resolve) => {
        this.#waiters.push(resolve);
        limit?.addEventListener("abort", () => resolve(), { once: true });
        options.signal?.addEventListener("abort", () => resolve(), { once: true });
      });
    }
    entry.state = "ended";
    return [...entry.clones];
  }

  kill(ticket: string, options: CallOptions = {}): Promise<void> {
    this.calls.push(`kill ${ticket}`);
    return attempt(() => {
      const entry = this.#owned(ticket, options);
      for (const clone of entry.clones) {
        if (clone.state !== "exited") this.#set(clone, "killed", { reason: "its ticket was killed" });
      }
      entry.state = "ended";
    });
  }

  checkpoint(domain: string | number, _options?: NodeOptions): Promise<TicketInfo> {
    this.calls.push(`checkpoint ${domain}`);
    return attempt(() => {
      const ticket = `t${this.#next++}`;
      this.#tickets.set(ticket, { parent: this.#parent(domain), state: "ready", clones: [] });
      return this.#changed(ticket);
    });
  }

  cloneExited(domid: number, status: number, data: string): Promise<void> {
    this.calls.push(`cloneExited ${domid} ${status}`);
    return attempt(() => {
      const clone = this.#clones().find((clone) => clone.domid === domid);
      if (clone === undefined) throw new EngineError("not-yours", `Domain ${domid} is no clone`);
      this.#set(clone, "exited", { status, data });
    });
  }

  cloneAwake(domid: number): void {
    this.awake.push(domid);
  }

  /** Ends a clone as a crash would. */
  lose(domid: number, reason: string): void {
    const clone = this.#clones().find((clone) => clone.domid === domid);
    if (clone !== undefined) this.#set(clone, "lost", { reason });
  }

  identity(domid: number): Identity {
    const clone = this.#clones().find((clone) => clone.domid === domid);
    if (clone === undefined) return { id: 0, family: this.parents.get(domid) ?? `dom${domid}` };
    const parent = this.#tickets.get(clone.ticket)?.parent.name ?? "";
    return { id: clone.id, ticket: clone.ticket, family: parent };
  }

  list(): readonly TicketInfo[] {
    return [...this.#tickets.keys()].reverse().map((ticket) => this.#info(ticket));
  }

  show(name: string): TicketInfo | CloneInfo | undefined {
    if (this.#tickets.has(name)) return this.#info(name);
    return this.#clones().find((clone) => clone.name === name || clone.uuid === name || String(clone.domid) === name);
  }

  domains(): readonly DomainSummary[] {
    const parents = [...this.parents].map(([domid, name]) => ({ domid, name, identity: this.identity(domid) }));
    const clones = this.#clones().flatMap((clone) => {
      const parent = this.#tickets.get(clone.ticket)?.parent;
      if (clone.domid === undefined || clone.state !== "running" || parent === undefined) return [];
      const { domid, name } = clone;
      return [{ domid, name, parentDomid: parent.domid, parent: parent.name, identity: this.identity(domid) }];
    });
    return [...parents, ...clones];
  }

  on(listener: (event: EngineEvent) => void): Disposable {
    this.#listeners.add(listener);
    return { [Symbol.dispose]: () => void this.#listeners.delete(listener) };
  }

  #clones(): CloneInfo[] {
    return [...this.#tickets.values()].flatMap((entry) => entry.clones);
  }

  #parent(domain: string | number): { domid: number; name: string } {
    for (const [domid, name] of this.parents) if (domain === domid || domain === name) return { domid, name };
    throw new EngineError("no-such-domain", `There is no domain ${domain}`);
  }

  #owned(ticket: string, options: CallOptions): Entry {
    const entry = this.#tickets.get(ticket);
    if (entry === undefined) throw new EngineError("no-such-ticket", `There is no ticket ${ticket}`);
    if (options.caller !== undefined && options.caller !== entry.parent.domid) {
      throw new EngineError("not-yours", `Ticket ${ticket} is another domain's`);
    }
    return entry;
  }

  #set(clone: CloneInfo, state: CloneState, change: Partial<CloneInfo>): void {
    const entry = this.#tickets.get(clone.ticket);
    if (entry === undefined) return;
    const changed: CloneInfo = { ...clone, ...change, state };
    entry.clones = entry.clones.map((other) => other.id === clone.id ? changed : other);
    for (const listener of this.#listeners) listener({ type: "clone", clone: changed });
    for (const resolve of this.#waiters.splice(0)) resolve();
  }

  #info(ticket: string): TicketInfo {
    const entry = this.#tickets.get(ticket);
    if (entry === undefined) throw new EngineError("no-such-ticket", `There is no ticket ${ticket}`);
    const { parent, state, clones } = entry;
    return { ticket, parent, state, granted: clones.length, clones: [...clones] };
  }

  #changed(ticket: string): TicketInfo {
    const info = this.#info(ticket);
    for (const listener of this.#listeners) listener({ type: "ticket", ticket: info });
    return info;
  }
}

/** A rejection instead of an exception, as of the real engine. */
function attempt<T>(work: () => T): Promise<T> {
  return new Promise((resolve) => resolve(work()));
}
