/** Clones on this host. */
import { getLogger } from "@logtape/logtape";
import { PAGE_BYTES } from "../../hypercall/ports.ts";
import type { Domid } from "../../hypercall/ports.ts";
import type { CloneHost, CloneName, CloneNews, Prepared, PrepareRequest, Started, StartRequest } from "./clone_host.ts";
import type { GuestShape } from "./descriptor.ts";
import { endDomain } from "./end.ts";
import type { Journal } from "./journal.ts";
import type { Parents } from "./parent.ts";
import { makeShell, shellCostPages, type ShellPorts } from "./shell.ts";
import { startClone } from "./start.ts";

/** Host memory that clones never take: Xen and dom0 need some at any time. */
const RESERVED_BYTES = 64 << 20;
/** A clone touches a part of its memory at once; it is not admitted without that part. */
const WORKING_SET_SHARE = 8n;
/** SHUTDOWN_* (public/sched.h). */
const SHUTDOWN_TEXTS = [
  "it powered off",
  "it rebooted",
  "it suspended",
  "it crashed",
  "its watchdog fired",
  "it reset",
];

interface LocalClone extends CloneName {
  readonly ticket: string;
  readonly family: string;
  readonly domid: Domid;
  running: boolean;
  ending: Promise<void> | undefined;
  /** It was to end, and something of it is left. */
  unfinished: boolean;
}

export class LocalHost implements CloneHost {
  readonly name: string;
  readonly #ports: ShellPorts;
  readonly #journal: Journal;
  readonly #parents: Parents;
  /** Whether clones are filled where a fork does not say. */
  readonly #fill: boolean;
  readonly #clones = new Map<Domid, LocalClone>();
  readonly #listeners: ((news: CloneNews) => void)[] = [];
  readonly #log = getLogger(["snowflock", "host"]);

  constructor(name: string, ports: ShellPorts, journal: Journal, parents: Parents, fill: boolean) {
    this.#fill = fill;
    this.name = name;
    this.#ports = ports;
    this.#journal = journal;
    this.#parents = parents;
  }

  capacity(shape: GuestShape, wanted: number): Promise<number> {
    const free = this.#ports.xen.physicalInfo().freePages - BigInt(RESERVED_BYTES / PAGE_BYTES);
    const each = shellCostPages(shape) + BigInt(shape.memory.map.pages) / WORKING_SET_SHARE;
    const fit = free <= 0n ? 0n : free / each;
    return Promise.resolve(fit < BigInt(wanted) ? Number(fit) : wanted);
  }

  async prepare({ ticket, family, clones, shape }: PrepareRequest): Promise<Prepared[]> {
    const { clock } = this.#ports;
    const twice = clones.find(({ id }) => this.#find(ticket, id) !== undefined);
    if (twice !== undefined) throw new Error(`Ticket ${ticket} has a clone ${twice.id} on ${this.name} already`);
    this.#journal.addShells(clones.map(({ uuid }) => uuid));
    const prepared: Prepared[] = [];
    for (const clone of clones) {
      const started = clock.nowMs();
      let made: LocalClone | undefined;
      try {
        const domid = await makeShell(this.#ports, { ...clone, shape }, (domid) => {
          made = { ...clone, ticket, family, domid, running: false, ending: undefined, unfinished: false };
        });
        if (made !== undefined) this.#clones.set(domid, made);
        this.#parents.learn(domid, shape);
        prepared.push({ id: clone.id, domid, shellMs: clock.nowMs() - started });
      } catch (error) {
        this.#log.warn("a shell could not be made", { ticket, clone: clone.name, error });
        if (made !== undefined) await this.#endLogged(made, false);
        else this.#journal.removeShell(clone.uuid);
        prepared.push({ id: clone.id, error: error instanceof Error ? error.message : String(error) });
      }
    }
    return prepared;
  }

  async start({ ticket, descriptor, nodes, fill }: StartRequest): Promise<Started[]> {
    const { clock } = this.#ports;
    const started: Started[] = [];
    for (const [id, guestNodes] of nodes) {
      const clone = this.#find(ticket, id);
      if (clone === undefined) {
        started.push({ id, error: "its shell is gone" });
        continue;
      }
      const begun = clock.nowMs();
      try {
        clone.running = true;
        this.#parents.learn(clone.domid, descriptor);
        await startClone(this.#ports, clone.domid, descriptor, guestNodes);
        started.push({ id, restoreMs: clock.nowMs() - begun });
        if (fill ?? this.#fill) void this.#fillClone(clone);
      } catch (error) {
        this.#log.warn("a clone could not be started", { ticket, clone: clone.name, error });
        await this.#endLogged(clone, false);
        started.push({ id, error: error instanceof Error ? error.message : String(error) });
      }
    }
    return started;
  }

  async end(ticket: string, ids: readonly number[]): Promise<void> {
    await Promise.all(ids.map(async (id) => {
      const clone = this.#find(ticket, id);
      if (clone !== undefined) await this.#end(clone, true);
    }));
  }

  async memory(ticket: string): Promise<ReadonlyMap<number, Readonly<Record<string, number>>>> {
    const reports = new Map<number, Readonly<Record<string, number>>>();
    for (const clone of this.#clones.values()) {
      if (clone.ticket !== ticket) continue;
      const report = await this.#ports.memory.report(clone.domid);
      if (report !== undefined) reports.set(clone.id, { ...report });
    }
    return reports;
  }

  onNews(listener: (news: CloneNews) => void): void {
    this.#listeners.push(listener);
  }

  /** Domains that have ended, or shut down, since the last call: clones are cleaned up after, and their tickets told. */
  async sweep(): Promise<void> {
    await Promise.all([...this.#clones.values()].map(async (clone) => {
      if (clone.ending !== undefined) return;
      if (clone.unfinished) return await this.#endLogged(clone, true);
      const info = this.#ports.xen.domainInfo(clone.domid);
      if (info !== undefined && !info.dying && (!info.shutdown || !clone.running)) return;
      // A clone that is being forked suspends, and goes on.
      if (info?.shutdown === true && !info.dying && info.shutdownReason === 2) return;
      const reason = info === undefined || info.dying
        ? "it was destroyed"
        : SHUTDOWN_TEXTS[info.shutdownReason] ?? "it shut down";
      await this.lose(clone.domid, reason);
    }));
  }

  /** A clone cannot go on: it is ended, and its ticket told. */
  async lose(domid: Domid, reason: string): Promise<void> {
    const clone = this.#clones.get(domid);
    if (clone === undefined || clone.ending !== undefined) return;
    this.#log.warn("a clone is lost", { clone: clone.name, reason });
    const ended = this.#endLogged(clone, true);
    this.#tell({ kind: "ended", ticket: clone.ticket, id: clone.id, reason });
    await ended;
  }

  /** A clone's own code runs. */
  awake(domid: number): void {
    const clone = this.#clones.get(domid as Domid);
    if (clone !== undefined && clone.running) this.#tell({ kind: "running", ticket: clone.ticket, id: clone.id });
  }

  /** A clone is done: its ticket is told, and it is ended. Whether the domain is a clone that runs. */
  async exited(domid: number, status: number, data: string): Promise<boolean> {
    const clone = this.#clones.get(domid as Domid);
    if (clone === undefined || !clone.running || clone.ending !== undefined) return false;
    const memory = await this.#ports.memory.report(clone.domid);
    const { ticket, id } = clone;
    await this.#endLogged(clone, true);
    this.#tell({ kind: "exited", ticket, id, status, data, memory: { ...memory } });
    return true;
  }

  /** The clone that a domain is, whichever host its parent is on. */
  cloneOf(domid: number): { ticket: string; id: number; family: string } | undefined {
    const clone = this.#clones.get(domid as Domid);
    return clone === undefined ? undefined : { ticket: clone.ticket, id: clone.id, family: clone.family };
  }

  #find(ticket: string, id: number): LocalClone | undefined {
    for (const clone of this.#clones.values()) if (clone.ticket === ticket && clone.id === id) return clone;
    return undefined;
  }

  #end(clone: LocalClone, keep: boolean): Promise<void> {
    clone.ending ??= (async () => {
      try {
        await endDomain(this.#ports, clone.domid, clone.uuid, keep);
        await this.#parents.forget(clone.domid);
      } catch (error) {
        // Tried again by the next sweep.
        this.#clones.set(clone.domid, clone);
        clone.unfinished = true;
        clone.ending = undefined;
        throw error;
      }
      this.#clones.delete(clone.domid);
      this.#journal.removeShell(clone.uuid);
    })();
    return clone.ending;
  }

  /** Nobody can do anything about a failure: what is left is tried again by the next sweep, and by the next agent. */
  /** A clone that is not filled goes on as it is. */
  async #fillClone(clone: LocalClone): Promise<void> {
    try {
      await this.#ports.memory.fill(clone.domid);
    } catch (error) {
      this.#log.debug("a clone was not filled", { clone: clone.name, error });
    }
  }

  async #endLogged(clone: LocalClone, keep: boolean): Promise<void> {
    try {
      await this.#end(clone, keep);
    } catch (error) {
      this.#log.error("a clone could not be ended", { clone: clone.name, domid: clone.domid, error });
    }
  }

  #tell(news: CloneNews): void {
    for (const listener of this.#listeners) listener(news);
  }
}
