/** Clones on this host of parents on other hosts: made, started and ended at their coordinators' word. */
import { getLogger } from "@logtape/logtape";
import type { Domid } from "../../hypercall/ports.ts";
import type { CpuPolicy } from "../../hypercall/xen_api.ts";
import type { CloneHost, CloneName, CloneNews, PageChannel, Prepared, Started } from "../fork/clone_host.ts";
import type { Descriptor, GuestShape } from "../fork/descriptor.ts";
import type { GuestNodes } from "../fork/start.ts";
import type { MemoryCalls } from "../memory/calls.ts";
import { missingFeatures } from "./cpu.ts";
import type { FamilyKeys } from "./family_keys.ts";
import { MAX_CLONES_A_PEER, Session } from "./session.ts";
import { PeerError } from "./wire.ts";

/** This host's own clones. */
export interface HostHere extends CloneHost {
  /** Ends a clone and tells so as news. */
  lose(domid: Domid, reason: string): Promise<void>;
}

export interface GuestParts {
  readonly local: HostHere;
  readonly memory: Pick<MemoryCalls, "openRemoteSnapshot" | "releaseSnapshot" | "snapshotLost" | "fill">;
  readonly keys: FamilyKeys;
  /** The most that this host's processor offers a guest. */
  readonly cpuPolicy: () => CpuPolicy;
  /** Whether a network device, such as a bridge, is on this host. */
  readonly deviceExists: (name: string) => Promise<boolean>;
  readonly nowMs: () => number;
}

/** Sessions that are over and have clones that go on. */
const MAX_ORPHANED = 1024;
/** Ids of sessions that are over, as long as a late heartbeat could name one. */
const MAX_OVER_IDS = 4096;

export class Guests implements AsyncDisposable {
  readonly #parts: GuestParts;
  readonly #leaseMs: number;
  readonly #sessions = new Map<string, Session>();
  /** Sessions that are over, as long as clones of them go on. */
  #orphaned: Session[] = [];
  readonly #overIds: string[] = [];
  /** Snapshots of other hosts that clones here were started from, and whose they are. */
  readonly #snapshots = new Map<string, { readonly peer: string; readonly family: string }>();
  readonly #work = new Set<Promise<unknown>>();
  readonly #log = getLogger(["snowflock", "peers"]);

  /** `leaseMs`: after so long without a word from its coordinator, what was made for it lapses. */
  constructor(parts: GuestParts, leaseMs: number) {
    this.#parts = parts;
    this.#leaseMs = leaseMs;
    parts.local.onNews((news) => this.#onNews(news));
  }

  /** A heartbeat: the session it names, which it renews. Throws a {@link PeerError} `no-session` if that is over or unknown. */
  hello(peer: string, hello: { instance: string; session: string; fresh: boolean }): Session {
    const known = this.#sessions.get(peer);
    if (known?.id === hello.session && known.instance === hello.instance) {
      known.heardMs = this.#parts.nowMs();
      return known;
    }
    // A first heartbeat that was long under way must not take a later session's place.
    if (!hello.fresh || this.#overIds.includes(hello.session)) throw noSession();
    if (known !== undefined) {
      this.#over(
        known,
        known.instance === hello.instance ? "its host has given it up" : "its host's agent has restarted",
      );
    }
    // The coordinator lives, and has reported as lost what it had here before: nobody could ever join or end it.
    for (const old of this.#orphaned) {
      if (old.peer === peer && old.instance === hello.instance) this.#spawn(this.#endAll(old));
    }
    const session = new Session(peer, hello.instance, hello.session, this.#parts.nowMs());
    this.#sessions.set(peer, session);
    return session;
  }

  /** The session of a call. Throws a {@link PeerError} `no-session`. */
  session(peer: string, id: string | undefined): Session {
    const session = this.#sessions.get(peer);
    if (session === undefined || session.id !== id) throw noSession();
    return session;
  }

  /** Ends sessions whose coordinators are silent. To be called now and then. */
  lapse(): void {
    for (const session of [...this.#sessions.values()]) {
      const silentMs = this.#parts.nowMs() - session.heardMs;
      if (silentMs > this.#leaseMs) {
        this.#over(session, `host ${session.peer} has been silent for ${Math.round(silentMs)} ms`);
      }
    }
  }

  async capacity(shape: GuestShape, wanted: number): Promise<number> {
    this.#checkCpu(shape);
    return await this.#parts.local.capacity(shape, wanted);
  }

  prepare(
    session: Session,
    { ticket, family, clones, shape }: {
      readonly ticket: string;
      readonly family: string;
      readonly clones: readonly CloneName[];
      readonly shape: GuestShape;
    },
  ): Promise<Prepared[]> {
    return session.inOrder(ticket, async () => {
      this.#checkCpu(shape);
      if (session.cloneCount + clones.length > MAX_CLONES_A_PEER) {
        throw new PeerError("busy", `Host ${session.peer} has ${session.cloneCount} clones here already`);
      }
      if (new Set(clones.map(({ id }) => id)).size !== clones.length) {
        throw new PeerError("bad-message", "Two clones have one number");
      }
      if (this.#elsewhere(session, ticket)) throw new PeerError("bad-message", `Ticket ${ticket} is not this host's`);
      const { local } = this.#parts;
      const vifs = await Promise.all(shape.vifs.map(async ({ handle, bridge }) => ({
        handle,
        // A bridge of the parent's host need not be here.
        bridge: bridge !== "" && await this.#parts.deviceExists(bridge) ? bridge : "",
      })));
      const prepared = await local.prepare({ ticket, family, clones, shape: { ...shape, vifs } });
      for (const { id, domid } of prepared) if (domid !== undefined) session.add(ticket, id, domid);
      if (session.over !== undefined) {
        await this.#endShells(session);
        throw noSession();
      }
      return prepared;
    });
  }

  start(
    session: Session,
    { ticket, descriptor, nodes, channel, fill }: {
      readonly ticket: string;
      readonly descriptor: Descriptor;
      readonly nodes: ReadonlyMap<number, GuestNodes>;
      readonly channel: PageChannel;
      readonly fill: boolean;
    },
  ): Promise<Started[]> {
    return session.inOrder(ticket, async () => {
      this.#checkCpu(descriptor);
      if (channel.family !== descriptor.family) {
        throw new PeerError("bad-message", "The pages' family is not the descriptor's");
      }
      const { local, memory } = this.#parts;
      const shells = new Map([...nodes].filter(([id]) => session.clone(ticket, id)?.started === false));
      if (shells.size === 0) throw new PeerError("bad-message", `Ticket ${ticket} has no such shells here`);
      const { snapshot } = descriptor;
      const opened = await this.#open(session, descriptor, channel);
      try {
        for (const id of shells.keys()) {
          const clone = session.clone(ticket, id);
          if (clone === undefined) continue;
          clone.started = true;
          clone.snapshot = snapshot;
        }
        const started = await local.start({ ticket, descriptor, nodes: shells });
        for (const { id, error } of started) {
          const clone = session.clone(ticket, id);
          if (error !== undefined) session.remove(ticket, id);
          else if (fill && clone !== undefined) void this.#fill(session, ticket, clone);
        }
        if (session.over !== undefined) await memory.snapshotLost(snapshot);
        const left = [...nodes.keys()].filter((id) => !shells.has(id));
        return [...started, ...left.map((id) => ({ id, error: "its shell is gone" }))];
      } finally {
        // The clones hold it from now on.
        if (opened) await memory.releaseSnapshot(snapshot);
        this.#forgetSnapshots();
      }
    });
  }

  end(session: Session, ticket: string, ids: readonly number[]): Promise<void> {
    return session.inOrder(ticket, async () => {
      const mine = ids.filter((id) => session.clone(ticket, id) !== undefined);
      await this.#parts.local.end(ticket, mine);
      for (const id of mine) session.remove(ticket, id);
      this.#forgetSnapshots();
    });
  }

  async memory(session: Session, ticket: string): Promise<[number, Record<string, number>][]> {
    const clones = session.tickets.get(ticket);
    if (clones === undefined) return [];
    const reports = await this.#parts.local.memory(ticket);
    return [...clones.values()].flatMap(({ id, filling }) => {
      const report = reports.get(id);
      return report === undefined ? [] : [[id, { ...report, filling: filling ? 1 : 0 }]];
    });
  }

  /** Whether a coordinator that is there has yet to take news. */
  get hasNews(): boolean {
    return [...this.#sessions.values()].some((session) => session.pendingNews > 0);
  }

  /** This host's agent ends: so do its guests, and their coordinators are told. */
  async endGuests(reason: string): Promise<void> {
    const sessions = [...this.#sessions.values(), ...this.#orphaned];
    await Promise.all(
      sessions.flatMap((session) =>
        [...session.tickets].flatMap(([ticket, clones]) =>
          [...clones.values()].map(async ({ id, domid, started }) => {
            if (started) await this.#parts.local.lose(domid as Domid, reason);
            else {
              await this.#parts.local.end(ticket, [id]);
              session.tell({ kind: "ended", ticket, id, reason });
            }
          })
        )
      ),
    );
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const session of this.#sessions.values()) session.end("this agent ends");
    while (this.#work.size > 0) await Promise.allSettled(this.#work);
  }

  #checkCpu(shape: GuestShape): void {
    let missing: string[];
    try {
      missing = missingFeatures(shape.cpuPolicy, this.#parts.cpuPolicy());
    } catch (cause) {
      if (cause instanceof RangeError) throw new PeerError("bad-message", cause.message, { cause });
      throw cause;
    }
    if (missing.length > 0) {
      throw new PeerError("cpu", `Host ${this.#parts.local.name} cannot run the guest: it lacks ${missing.join(", ")}`);
    }
  }

  /** Whether a ticket of that name belongs to another coordinator, or to one's session that is over. */
  #elsewhere(session: Session, ticket: string): boolean {
    return [...this.#sessions.values(), ...this.#orphaned].some((other) =>
      other !== session && other.tickets.has(ticket)
    );
  }

  /** Makes the snapshot known to the memory thread, unless it is. Whether this call has become its user. */
  async #open(session: Session, descriptor: Descriptor, channel: PageChannel): Promise<boolean> {
    const { snapshot, family } = descriptor;
    const { key, mode, server } = channel;
    this.#parts.keys.learn(family, key);
    const known = this.#snapshots.get(snapshot);
    if (known !== undefined && (known.peer !== session.peer || known.family !== family)) {
      throw new PeerError("bad-message", "The snapshot is not the sender's");
    }
    const source = { family, key, mode, server, snapshot, ranges: descriptor.memory.map.ranges, free: descriptor.free };
    try {
      await this.#parts.memory.openRemoteSnapshot(source);
    } catch (error) {
      // A checkpoint's clones come from one snapshot, ticket after ticket: the earlier ones hold it.
      if (known === undefined) throw error;
      return false;
    }
    this.#snapshots.set(snapshot, { peer: session.peer, family });
    return true;
  }

  #forgetSnapshots(): void {
    const used = new Set(
      [...this.#sessions.values(), ...this.#orphaned].flatMap((session) =>
        [...session.tickets.values()].flatMap((clones) => [...clones.values()].map(({ snapshot }) => snapshot))
      ),
    );
    for (const snapshot of this.#snapshots.keys()) if (!used.has(snapshot)) this.#snapshots.delete(snapshot);
  }

  async #fill(session: Session, ticket: string, clone: { id: number; domid: number; filling: boolean }): Promise<void> {
    const { id, domid } = clone;
    clone.filling = true;
    try {
      await this.#parts.memory.fill(domid as Domid);
      session.tell({ kind: "whole", ticket, id });
    } catch (error) {
      // It goes on as long as its parent's host serves it.
      this.#log.warn("the rest of a clone's memory did not come in", { ticket, clone: id, error });
    } finally {
      clone.filling = false;
    }
  }

  #onNews(news: CloneNews): void {
    for (const session of [...this.#sessions.values(), ...this.#orphaned]) session.tell(news);
    this.#orphaned = this.#orphaned.filter(({ tickets }) => tickets.size > 0);
    if (news.kind === "exited" || news.kind === "ended") this.#forgetSnapshots();
  }

  /** A coordinator is gone. Shells end; clones that lack pages are lost, for none will come; those that are whole go on. */
  #over(session: Session, reason: string): void {
    if (this.#sessions.get(session.peer) === session) this.#sessions.delete(session.peer);
    session.end(reason);
    this.#overIds.push(session.id);
    if (this.#overIds.length > MAX_OVER_IDS) this.#overIds.shift();
    this.#log.warn("a coordinator is gone", { peer: session.peer, reason, clones: session.cloneCount });
    if (session.cloneCount > 0) this.#orphaned.push(session);
    this.#spawn(this.#clear(session));
  }

  async #clear(session: Session): Promise<void> {
    await this.#endShells(session);
    const snapshots = new Set(
      [...session.tickets.values()].flatMap((clones) => [...clones.values()].map(({ snapshot }) => snapshot)),
    );
    for (const snapshot of snapshots) if (snapshot !== undefined) await this.#parts.memory.snapshotLost(snapshot);
    for (const old of this.#orphaned.splice(0, Math.max(0, this.#orphaned.length - MAX_ORPHANED))) {
      await this.#endAll(old);
    }
    this.#orphaned = this.#orphaned.filter(({ tickets }) => tickets.size > 0);
  }

  async #endShells(session: Session): Promise<void> {
    for (const [ticket, clones] of [...session.tickets]) {
      const shells = [...clones.values()].filter(({ started }) => !started).map(({ id }) => id);
      if (shells.length > 0) await this.#parts.local.end(ticket, shells);
      for (const id of shells) session.remove(ticket, id);
    }
  }

  async #endAll(session: Session): Promise<void> {
    for (const [ticket, clones] of [...session.tickets]) {
      const ids = [...clones.keys()];
      await this.#parts.local.end(ticket, ids);
      for (const id of ids) session.remove(ticket, id);
    }
    this.#orphaned = this.#orphaned.filter(({ tickets }) => tickets.size > 0);
    this.#forgetSnapshots();
  }

  #spawn(work: Promise<void>): void {
    const done = work.catch((error) => this.#log.error("guests could not be cleaned up", { error }))
      .finally(() => this.#work.delete(done));
    this.#work.add(done);
  }
}

function noSession(): PeerError {
  return new PeerError("no-session", "There is no such session: it has lapsed, or this agent has restarted");
}
