/** Tickets and forks: the order of a fork's steps over this host and others. */
import { randomBytes } from "node:crypto";
import { getLogger } from "@logtape/logtape";
import type { Domid } from "../../hypercall/ports.ts";
import {
  type CallOptions,
  type CloneInfo,
  type CloneOptions,
  type DomainSummary,
  type Engine,
  EngineError,
  type EngineEvent,
  type ForkReport,
  type Identity,
  type JoinOptions,
  MAX_CLONES,
  MAX_EXIT_DATA_BYTES,
  type NodeOptions,
  type TicketInfo,
  type TicketRequest,
} from "../api/engine.ts";
import type { CloneHost, CloneNews, PageChannel } from "./clone_host.ts";
import { encodeDescriptor } from "./descriptor.ts";
import { resolveDomain } from "./domain_names.ts";
import { orEngineError } from "./failure.ts";
import { ticketEnd } from "./join_wait.ts";
import type { LocalHost } from "./local_host.ts";
import { SnapshotLoans } from "./loans.ts";
import type { Fork, Parents } from "./parent.ts";
import { startClones } from "./start_clones.ts";
import type { Store } from "./store.ts";
import { knownDomains, noteMemory } from "./survey.ts";
import { makeShells, type Placement } from "./placement.ts";
import { type CloneRecord, Ticket, Tickets } from "./tickets.ts";
import type { Clock } from "./timing.ts";

export interface ForkEngineOptions {
  readonly suspendTimeoutMs: number;
  /** Most tickets of one parent that have not ended. */
  readonly ticketsPerDomain: number;
  /** Most clones of one ticket. */
  readonly clonesPerTicket: number;
}

export interface ForkEngineParts {
  readonly local: CloneHost & Pick<LocalHost, "exited" | "awake" | "cloneOf">;
  /** Every host that clones may be on; this one first. */
  readonly hosts: readonly CloneHost[];
  readonly parents: Pick<Parents, "prepare" | "shapeOf" | "fork" | "exists" | "isFrozen" | "thaw">;
  readonly store: Pick<Store, "read" | "list">;
  readonly clock: Clock;
  /** Gives up the ticket's use of a snapshot. */
  readonly releaseSnapshot: (id: string) => Promise<void>;
  readonly placement: Placement;
  /** Lets other hosts have a snapshot's pages, and says how they get them. Without it, no clone can be on another host. */
  readonly share?: (snapshot: string, family: string) => Promise<PageChannel>;
}

export class ForkEngine implements Engine {
  readonly #parts: ForkEngineParts;
  readonly #options: ForkEngineOptions;
  readonly #hosts: ReadonlyMap<string, CloneHost>;
  readonly #tickets: Tickets;
  readonly #loans: SnapshotLoans;
  /** What follows the end of clones and tickets, and is under way. */
  readonly #after = new Set<Promise<void>>();
  readonly #forking = new Set<number>();
  readonly #calls = new Set<Promise<unknown>>();
  #closing = false;
  /** Families of parents that were never clones, by domid and uuid. */
  readonly #families = new Map<number, string>();
  readonly #templates = new Map<number, { ticket: Ticket; fork: Fork; options: NodeOptions }>();
  readonly #log = getLogger(["snowflock", "engine"]);

  constructor(parts: ForkEngineParts, options: ForkEngineOptions) {
    this.#parts = parts;
    this.#options = options;
    this.#hosts = new Map(parts.hosts.map((host) => [host.name, host]));
    this.#tickets = new Tickets((error) => this.#log.error("a listener failed", { error }));
    this.#loans = new SnapshotLoans((snapshot) => parts.releaseSnapshot(snapshot));
    this.#tickets.on((event) => {
      if (event.type === "clone" && this.#tickets.get(event.clone.ticket)?.clone(event.clone.id)?.ended === true) {
        this.#afterwards(this.#loans.giveBack(event.clone.ticket, event.clone.id));
      }
      if (event.type === "ticket" && event.ticket.state === "ended") {
        this.#afterwards(parts.placement.release(event.ticket.ticket));
      }
    });
    for (const host of parts.hosts) host.onNews((news) => this.#onNews(news));
  }

  requestTicket(request: TicketRequest, options: CallOptions = {}): Promise<TicketInfo> {
    return this.#call(`Cannot make clones of ${request.domain}`, () => this.#requestTicket(request, options));
  }

  async #requestTicket(request: TicketRequest, options: CallOptions): Promise<TicketInfo> {
    const wanted = request.clones;
    if (!Number.isInteger(wanted) || wanted < 1 || wanted > MAX_CLONES) {
      throw new EngineError("bad-count", `The number of clones must be 1 to ${MAX_CLONES}, not ${wanted}`);
    }
    if (wanted > this.#options.clonesPerTicket) {
      throw new EngineError("limit", `A ticket may have at most ${this.#options.clonesPerTicket} clones here`);
    }
    const parent = await resolveDomain(this.#parts.store, request.domain);
    if (options.caller !== undefined && options.caller !== parent.domid) {
      throw new EngineError("not-yours", "A guest can ask for clones of itself only");
    }
    const open = this.#tickets.all().filter((ticket) =>
      !ticket.ended && !ticket.orphaned && ticket.parent.domid === parent.domid
    );
    if (open.length >= this.#options.ticketsPerDomain) {
      throw new EngineError("limit", `${parent.name} has ${open.length} tickets open; end one first`);
    }
    const template = this.#templates.get(parent.domid);
    const shape = template?.fork.descriptor ?? await this.#parts.parents.shapeOf(parent.domid as Domid);
    const ticket = new Ticket(`t${randomBytes(6).toString("hex")}`, this.#familyOf(parent), parent, shape);
    ticket.busy = true;
    this.#tickets.add(ticket);
    try {
      await this.#parts.parents.prepare(parent.domid as Domid);
      ticket.clones.push(...await makeShells(ticket, wanted, this.#parts.hosts, this.#parts.placement));
    } catch (error) {
      this.#tickets.end(ticket);
      throw error;
    } finally {
      ticket.busy = false;
    }
    this.#tickets.emit({ type: "ticket", ticket: ticket.info() });
    return ticket.info();
  }

  clone(name: string, options: CloneOptions = {}): Promise<ForkReport> {
    return this.#call("Cannot fork", () => this.#clone(name, options));
  }

  async #clone(name: string, options: CloneOptions): Promise<ForkReport> {
    const ticket = this.#ticket(name, options.caller);
    if (ticket.ended || ticket.forked) {
      throw new EngineError("ended", `Ticket ${name} has been used; request another`);
    }
    const { domid, name: parentName } = ticket.parent;
    if (ticket.busy || this.#forking.has(domid)) {
      throw new EngineError("busy", `Another fork of ${parentName} is under way`);
    }
    if (ticket.clones.every((clone) => clone.ended)) throw new EngineError("ended", `Ticket ${name} has no shells`);
    ticket.busy = true;
    this.#forking.add(domid);
    const { clock, parents } = this.#parts;
    ticket.forkedAtMs = clock.nowMs();
    try {
      const template = this.#templates.get(domid);
      const fork = template?.fork ?? await this.#fork(ticket, false);
      try {
        return await this.#start(ticket, fork, { ...template?.options, ...options });
      } finally {
        if (template === undefined) await this.#loans.release(fork.descriptor.snapshot);
      }
    } catch (error) {
      if (!parents.isFrozen(domid as Domid) && ticket.forked) this.#tickets.end(ticket);
      throw error;
    } finally {
      ticket.busy = false;
      this.#forking.delete(domid);
    }
  }

  async join(name: string, options: JoinOptions = {}): Promise<readonly CloneInfo[]> {
    const ticket = this.#ticket(name, options.caller);
    if (!ticket.ended && !ticket.forked) throw new EngineError("bad-request", `Ticket ${name} has not been cloned yet`);
    await ticketEnd(ticket, this.#parts.clock, options);
    return ticket.clones.map((clone) => clone.info());
  }

  async kill(name: string, options: CallOptions = {}): Promise<void> {
    const ticket = this.#ticket(name, options.caller);
    if (ticket.busy) throw new EngineError("busy", `Ticket ${name} is being worked on; try again`);
    ticket.busy = true;
    try {
      await this.#endClones(ticket, ticket.clones.filter((clone) => !clone.ended), "the ticket was killed");
      const template = this.#templates.get(ticket.parent.domid);
      if (template?.ticket === ticket) {
        this.#templates.delete(ticket.parent.domid);
        await this.#loans.release(template.fork.descriptor.snapshot);
        await this.#parts.parents.thaw(ticket.parent.domid as Domid);
      }
    } finally {
      ticket.busy = false;
      this.#tickets.end(ticket);
    }
  }

  checkpoint(domain: string | number, options: NodeOptions = {}): Promise<TicketInfo> {
    return this.#call(`Cannot checkpoint ${domain}`, () => this.#checkpoint(domain, options));
  }

  async #checkpoint(domain: string | number, options: NodeOptions): Promise<TicketInfo> {
    const parent = await resolveDomain(this.#parts.store, domain);
    if (options.caller !== undefined && options.caller !== parent.domid) {
      throw new EngineError("not-yours", "A guest can checkpoint itself only");
    }
    if (this.#templates.has(parent.domid)) throw new EngineError("busy", `${parent.name} is a checkpoint already`);
    if (this.#forking.has(parent.domid)) throw new EngineError("busy", `A fork of ${parent.name} is under way`);
    this.#forking.add(parent.domid);
    try {
      const shape = await this.#parts.parents.shapeOf(parent.domid as Domid);
      const ticket = new Ticket(`t${randomBytes(6).toString("hex")}`, this.#familyOf(parent), parent, shape);
      const fork = await this.#fork(ticket, true);
      this.#tickets.add(ticket);
      this.#templates.set(parent.domid, { ticket, fork, options });
      return ticket.info();
    } finally {
      this.#forking.delete(parent.domid);
    }
  }

  async cloneExited(domid: number, status: number, data: string): Promise<void> {
    if (!Number.isInteger(status) || status < 0 || status > 255) {
      throw new EngineError("bad-request", "A status is a number of 0 to 255");
    }
    if (new TextEncoder().encode(data).length > MAX_EXIT_DATA_BYTES) {
      throw new EngineError("bad-request", `A clone's data is at most ${MAX_EXIT_DATA_BYTES} bytes`);
    }
    if (!await this.#parts.local.exited(domid, status, data)) {
      throw new EngineError("not-yours", "Only a clone can exit");
    }
  }

  cloneAwake(domid: number): void {
    this.#parts.local.awake(domid);
  }

  identity(domid: number): Identity {
    const found = this.#tickets.cloneOf(this.#parts.local.name, domid);
    if (found !== undefined) return { id: found.clone.id, ticket: found.ticket.name, family: found.ticket.family };
    // A clone of a parent on another host.
    const guest = this.#parts.local.cloneOf(domid);
    if (guest !== undefined) return { id: guest.id, ticket: guest.ticket, family: guest.family };
    return { id: 0, family: this.#families.get(domid) ?? `domain-${domid}` };
  }

  list(): readonly TicketInfo[] {
    return this.#tickets.all().reverse().map((ticket) => ticket.info());
  }

  show(name: string): TicketInfo | CloneInfo | undefined {
    const ticket = this.#tickets.get(name);
    if (ticket !== undefined) return ticket.info();
    for (const each of this.#tickets.all().reverse()) {
      const clone = each.clones.find((clone) => [clone.name, clone.uuid, `${clone.domid}`].includes(name));
      if (clone !== undefined) return clone.info();
    }
    return undefined;
  }

  domains(): readonly DomainSummary[] {
    return knownDomains(this.#tickets.all(), this.#parts.local.name, (domid) => this.identity(domid));
  }

  on(listener: (event: EngineEvent) => void): Disposable {
    return this.#tickets.on(listener);
  }

  /** Brings the counters of clones' memory up to date, for `show`. */
  async refresh(): Promise<void> {
    for (const ticket of this.#tickets.all()) if (!ticket.ended && ticket.forked) await noteMemory(ticket, this.#hosts);
  }

  /** After domains have ended: a ticket whose parent is gone belongs to no guest, and ends if it was not forked. */
  async sweep(): Promise<void> {
    for (const ticket of this.#tickets.all()) {
      const { domid } = ticket.parent;
      if (ticket.orphaned || ticket.busy || this.#parts.parents.exists(domid as Domid)) continue;
      ticket.orphaned = true;
      this.#families.delete(domid);
      if (!ticket.forked) await this.kill(ticket.name);
    }
  }

  /** Refuses new tickets and forks, and ends every ticket, for the end of the agent. */
  async shutDown(): Promise<void> {
    this.#closing = true;
    await Promise.allSettled(this.#calls);
    for (const ticket of this.#tickets.all()) {
      if (ticket.ended) continue;
      try {
        ticket.busy = false;
        await this.kill(ticket.name);
      } catch (error) {
        this.#log.error("a ticket could not be ended", { ticket: ticket.name, error });
      }
    }
    await Promise.all(this.#after);
  }

  /** Something that makes domains, or stops one: the end of the agent waits for it. */
  async #call<T>(what: string, perform: () => Promise<T>): Promise<T> {
    if (this.#closing) throw new EngineError("aborted", "The agent is about to end");
    const call = orEngineError(what, perform());
    this.#calls.add(call);
    try {
      return await call;
    } finally {
      this.#calls.delete(call);
    }
  }

  #fork(ticket: Ticket, frozen: boolean): Promise<Fork> {
    return this.#parts.parents.fork(ticket.parent.domid as Domid, ticket.parent.name, {
      snapshot: randomBytes(16).toString("hex"),
      family: ticket.family,
      suspendTimeoutMs: this.#options.suspendTimeoutMs,
      frozen,
      map: ticket.shape.memory.map,
    });
  }

  async #start(ticket: Ticket, fork: Fork, options: CloneOptions): Promise<ForkReport> {
    const { clock } = this.#parts;
    ticket.forked = true;
    const { local, share } = this.#parts;
    const parts = { hosts: this.#hosts, local: local.name, loans: this.#loans, tickets: this.#tickets, clock, share };
    await startClones(parts, ticket, fork.descriptor, options);
    ticket.fork = {
      ticket: ticket.name,
      ...fork.times,
      descriptorBytes: encodeDescriptor(fork.descriptor).length,
      cloneMs: clock.nowMs() - ticket.forkedAtMs,
    };
    const report = { ...ticket.fork, clones: ticket.clones.map((clone) => clone.info()) };
    this.#tickets.emit({ type: "fork", report });
    return report;
  }

  /** Something that nobody waits for, but for the end of the agent. */
  #afterwards(work: Promise<void>): void {
    const done = work.catch((error) => this.#log.error("the end of a ticket has left something", { error }))
      .finally(() => this.#after.delete(done));
    this.#after.add(done);
  }

  async #endClones(ticket: Ticket, clones: readonly CloneRecord[], reason: string): Promise<void> {
    await noteMemory(ticket, this.#hosts);
    await Promise.all([...Map.groupBy(clones, ({ host }) => host)].map(async ([hostName, theirs]) => {
      try {
        await this.#hosts.get(hostName)?.end(ticket.name, theirs.map(({ id }) => id));
      } catch (error) {
        this.#log.error("clones could not be ended", { ticket: ticket.name, host: hostName, error });
      }
      for (const clone of theirs) {
        clone.domid = undefined;
        this.#tickets.cloneEnded(ticket, clone, "killed", reason);
      }
    }));
  }

  #onNews(news: CloneNews): void {
    const ticket = this.#tickets.get(news.ticket);
    const clone = ticket?.clone(news.id);
    if (ticket === undefined || clone === undefined || clone.ended) return;
    if (news.kind === "whole") return this.#afterwards(this.#loans.giveBack(news.ticket, news.id));
    if (news.kind === "running") {
      clone.times.firstRunMs ??= this.#parts.clock.nowMs() - ticket.forkedAtMs;
      this.#tickets.emit({ type: "clone", clone: clone.info() });
      return;
    }
    clone.domid = undefined;
    if (news.kind === "exited") {
      clone.status = news.status;
      clone.data = news.data;
      clone.memory = news.memory;
      this.#tickets.cloneEnded(ticket, clone, "exited");
    } else this.#tickets.cloneEnded(ticket, clone, "lost", news.reason);
  }

  #ticket(name: string, caller: number | undefined): Ticket {
    const ticket = this.#tickets.get(name);
    if (ticket === undefined) throw new EngineError("no-such-ticket", `There is no ticket ${name.slice(0, 64)}`);
    if (caller !== undefined && (ticket.orphaned || ticket.parent.domid !== caller)) {
      throw new EngineError("not-yours", `Ticket ${name} belongs to another domain`);
    }
    return ticket;
  }

  #familyOf(parent: { domid: number; name: string }): string {
    const { family, ticket } = this.identity(parent.domid);
    if (ticket !== undefined) return family;
    const known = this.#families.get(parent.domid);
    if (known !== undefined) return known;
    const made = randomBytes(16).toString("hex");
    this.#families.set(parent.domid, made);
    return made;
  }
}
