/**
 * Serves the paging rings of this host: first touches of parents, absent pages of clones. One object on one thread, so
 * that a touch, a page being served and a fault need no locks.
 */
import { errno, XenError } from "../../hypercall/errors.ts";
import type { Domid, EventChannelPort, Gfn, Machine, PinnedMemory, Poller, Port } from "../../hypercall/ports.ts";
import { PAGE_BYTES } from "../../hypercall/ports.ts";
import { type PagingRequest, PagingRing } from "../../hypercall/ring.ts";
import type { Xen } from "../../hypercall/xen_api.ts";
import { copyPages, saveLive } from "./copy_pages.ts";
import { HeldDomain, type MemoryCounters, PageState } from "./held_domain.ts";
import { type GfnRange, MemoryMap } from "./memory_map.ts";
import { ArenaFull, PageArena } from "./page_arena.ts";
import { type PageSource, Snapshot } from "./snapshot.ts";

/** Pages that are nominated between two looks at the rings. */
const NOMINATE_BATCH = 4096;
/** Nominated pages that are given back at a time: each takes one of the ring's eight slots, which vCPUs need too. */
const RELEASE_BATCH = 4;
const RELEASE_SCAN = 4096;
const MAX_EVENTS = 4096;
const ORPHAN_ANSWERS = 4;

/** What the service tells of its own accord. */
export type MemoryEvent =
  | { readonly kind: "suspended"; readonly domid: Domid }
  | { readonly kind: "lost"; readonly domid: Domid; readonly reason: string };

/** A clone's memory at a moment, in pages. */
export interface MemoryReport extends MemoryCounters {
  readonly pages: number;
  readonly resident: number;
  readonly absent: number;
  readonly nominated: number;
  readonly snapshots: number;
  readonly saved: number;
}

export interface SnapshotReport {
  readonly nominated: number;
  /** Pages that were copied at the fork: dirty ones, and those that Xen or a back end holds a reference to. */
  readonly copied: number;
  readonly inherited: number;
  readonly free: number;
  readonly holes: number;
}

export interface MemoryServiceOptions {
  /** Most pages of saved copies. */
  readonly arenaPages: number;
}

export class MemoryService implements Disposable {
  readonly #machine: Machine;
  readonly #xen: Xen;
  readonly #poller: Poller;
  readonly #events: EventChannelPort;
  readonly #arena: PageArena;
  readonly #zeroPage: PinnedMemory;
  readonly #domains = new Map<Domid, HeldDomain>();
  readonly #byPort = new Map<Port, HeldDomain>();
  readonly #suspends = new Map<Port, Domid>();
  readonly #snapshots = new Map<string, PageSource>();
  readonly #news: MemoryEvent[] = [];
  #onNews: (() => void) | undefined;
  #settled = false;

  constructor(machine: Machine, xen: Xen, poller: Poller, options: MemoryServiceOptions) {
    this.#machine = machine;
    this.#xen = xen;
    this.#poller = poller;
    this.#events = machine.openEventChannels();
    this.#poller.add(this.#events.fd);
    this.#arena = new PageArena(machine.hypercalls, options.arenaPages);
    this.#zeroPage = machine.hypercalls.allocate(PAGE_BYTES);
  }

  /**
   * Takes a domain's paging ring. `absent` says that all its RAM is (or is going to be) paged out. The ring's page is taken
   * away from the guest.
   */
  openDomain(domid: Domid, ranges: readonly GfnRange[], ringGfn: Gfn, absent: boolean): void {
    const held = this.#domains.get(domid);
    if (held !== undefined) {
      // It is about to be forked again: what is nominated may stay so.
      held.releaseCursor = undefined;
      return;
    }
    using undo = new DisposableStack();
    const gfns = BigUint64Array.of(ringGfn);
    let mapping = this.#machine.foreignMemory.map(domid, gfns, { write: true });
    if (mapping.errors[0] !== 0) {
      mapping[Symbol.dispose]();
      this.#xen.populate(domid, gfns, 0);
      mapping = this.#machine.foreignMemory.map(domid, gfns, { write: true });
    }
    undo.use(mapping);
    const ring = new PagingRing(mapping.bytes);
    ring.initialise();
    const remote = this.#xen.pagingEnable(domid);
    undo.defer(() => this.#xen.pagingDisable(domid));
    const port = this.#events.bindInterdomain(domid, remote);
    undo.defer(() => this.#events.unbind(port));
    this.#xen.decreaseReservation(domid, gfns);
    const domain = new HeldDomain(
      { domid, map: new MemoryMap(ranges), ring, ringMapping: mapping, ringGfn, port },
      absent,
    );
    this.#domains.set(domid, domain);
    this.#byPort.set(port, domain);
    undo.move();
  }

  /** Says through {@link nextEvents} when `domid` has suspended; `remotePort` is the port that Xen signals. */
  watchSuspend(domid: Domid, remotePort: Port): Port {
    const port = this.#events.bindInterdomain(domid, remotePort);
    this.#suspends.set(port, domid);
    return port;
  }

  unwatchSuspend(port: Port): void {
    if (this.#suspends.delete(port)) this.#events.unbind(port);
  }

  /**
   * Makes a snapshot of a suspended domain: copies the `hot` pages, nominates the others. `free` are pages that nobody will
   * read. A `frozen` domain never runs again while the snapshot lives: nothing is nominated. The caller is the snapshot's first user.
   */
  takeSnapshot(id: string, domid: Domid, hot: Uint32Array, free: Uint32Array, frozen: boolean): SnapshotReport {
    const domain = this.#domain(domid);
    if (this.#snapshots.has(id)) throw new Error(`Cannot take snapshot ${id}: it exists`);
    const snapshot = new Snapshot(id, domid, domain.map, this.#arena);
    const report = { nominated: 0, copied: 0, inherited: 0, free: 0, holes: 0 };
    try {
      const plain = new Uint8Array(domain.map.pages).fill(1);
      domain.state.forEach((state, index) => {
        if (state !== PageState.absent && state !== PageState.awaited) return;
        if (domain.source === undefined) {
          throw new Error(`page ${index} of domain ${domid} is absent and has no source`);
        }
        snapshot.markInherited(index, domain.source);
        plain[index] = 0;
        report.inherited++;
      });
      const copied = hot.filter((index) => plain[index] === 1);
      for (const index of copied) plain[index] = 0;
      report.copied += this.#copyInto(snapshot, copied, report);
      for (const index of free) {
        if (plain[index] !== 1) continue;
        snapshot.markFree(index);
        plain[index] = 0;
        report.free++;
      }
      domain.snapshots.add(snapshot);
      domain.releaseCursor = undefined;
      const rest: number[] = [];
      plain.forEach((wanted, index) => {
        if (wanted === 0) return;
        if (domain.state[index] === PageState.nominated) report.nominated++;
        else if (!frozen) rest.push(index);
      });
      for (let at = 0; at < rest.length; at += NOMINATE_BATCH) {
        this.#nominate(domain, snapshot, Uint32Array.from(rest.slice(at, at + NOMINATE_BATCH)), report);
        this.serveRings();
      }
    } catch (error) {
      domain.snapshots.delete(snapshot);
      snapshot.release();
      this.#startRelease(domain);
      throw error;
    }
    snapshot.ended = () => {
      this.#snapshots.delete(id);
      domain.snapshots.delete(snapshot);
      this.#startRelease(domain);
    };
    this.#snapshots.set(id, snapshot);
    return report;
  }

  /** Absent pages of `domid` come from snapshot `id` from now on. */
  attachSource(domid: Domid, id: string): void {
    const domain = this.#domain(domid);
    const source = this.#snapshots.get(id);
    if (source === undefined) throw new Error(`Cannot attach domain ${domid} to snapshot ${id}: it has ended`);
    source.retain();
    domain.source?.release();
    domain.source = source;
  }

  /** Gives up the caller's use of a snapshot. It ends with its last clone. */
  releaseSnapshot(id: string): void {
    this.#snapshots.get(id)?.release();
  }

  /** Brings pages in before anybody asks: those that must be there, or are likely to be wanted. Pages brought in. */
  push(domid: Domid, indexes: Uint32Array): number {
    const domain = this.#domain(domid);
    const batch: { index: number; address: bigint }[] = [];
    let pushed = 0;
    for (const index of indexes) {
      if (domain.state[index] !== PageState.absent) continue;
      const located = domain.source?.locate(index);
      if (located?.kind === "memory") batch.push({ index, address: located.address });
      else if (this.#bringIn(domain, index, domain.map.gfnAt(index), "pushed") === "in") pushed++;
    }
    const gfns = domain.map.gfnsOf(Uint32Array.from(batch, ({ index }) => index));
    const results = this.#xen.prepMany(domid, gfns, BigUint64Array.from(batch, ({ address }) => address));
    batch.forEach(({ index }, at) => {
      const result = results[at] ?? 0;
      if (result !== 0 && result !== -errno("ENOENT")) {
        this.#lose(domain, `page ${index} cannot be brought in: errno ${-result}`);
        return;
      }
      domain.state[index] = PageState.present;
      domain.counters.pushed++;
      pushed++;
    });
    return pushed;
  }

  /**
   * Lets go of a domain, for its end or because it is whole. With `keep`, what clones still need of its memory is copied
   * first, so that they outlive it; without, they learn that it is gone. Nothing happens for a domain that is not held.
   */
  closeDomain(domid: Domid, keep: boolean): void {
    const domain = this.#domains.get(domid);
    if (domain === undefined) return;
    for (const snapshot of domain.snapshots) {
      if (!keep) {
        snapshot.break(`the machine they were forked from (domain ${domid}) is gone`);
        continue;
      }
      try {
        saveLive(this.#machine.foreignMemory, this.#arena, snapshot);
      } catch (error) {
        snapshot.break(error instanceof Error ? error.message : String(error));
      }
    }
    this.#drop(domain);
  }

  /** Resolves when no page of a parent is nominated any more and its ring is closed; at once if it is not held. */
  released(domid: Domid): Promise<void> {
    const domain = this.#domains.get(domid);
    if (domain === undefined) return Promise.resolve();
    return new Promise((resolve) => domain.onReleased.push(resolve));
  }

  /** Gives back all nominated pages of a domain that has no snapshot, then closes its ring. */
  releaseDomain(domid: Domid): void {
    const domain = this.#domains.get(domid);
    if (domain !== undefined) this.#startRelease(domain);
  }

  /**
   * Takes the ring of a domain that another process held when it died, and gives all its pages back. Which are nominated is not
   * known: all are taken to be. Requests that got lost with the old ring are answered for every vCPU, as Xen ignores answers that
   * nobody waits for.
   */
  takeOver(domid: Domid, ranges: readonly GfnRange[], ringGfn: Gfn, vcpus: number): void {
    try {
      this.#xen.pagingDisable(domid);
    } catch (error) {
      // There was no ring: the other process died before it had one, or after it closed it.
      if (!(error instanceof XenError)) throw error;
    }
    this.openDomain(domid, ranges, ringGfn, false);
    const domain = this.#domain(domid);
    domain.state.fill(PageState.nominated);
    domain.orphanedVcpus = vcpus;
    this.#startRelease(domain);
  }

  report(domid: Domid): MemoryReport | undefined {
    const domain = this.#domains.get(domid);
    if (domain === undefined) return undefined;
    const absent = domain.count(PageState.absent) + domain.count(PageState.awaited);
    let saved = 0;
    for (const snapshot of domain.snapshots) saved += snapshot.saved;
    return {
      ...domain.counters,
      pages: domain.map.pages,
      absent,
      resident: domain.map.pages - absent,
      nominated: domain.count(PageState.nominated),
      snapshots: domain.snapshots.size,
      saved,
    };
  }

  /** Resolves with what has happened as soon as something has. */
  async nextEvents(): Promise<MemoryEvent[]> {
    if (this.#news.length === 0) await new Promise<void>((resolve) => this.#onNews = resolve);
    return this.#news.splice(0);
  }

  /** Whether a promise was settled since the last call: the thread's event loop needs a turn for its caller to learn of it. */
  takeSettled(): boolean {
    const settled = this.#settled;
    this.#settled = false;
    return settled;
  }

  /** Something of the machine became readable. */
  onReadable(fd: number): void {
    if (fd !== this.#events.fd) return;
    for (const port of this.#events.pending()) {
      // Unmasked before the ring is drained: a request that comes in between fires again.
      this.#events.unmask(port);
      const domain = this.#byPort.get(port);
      if (domain !== undefined) this.#serve(domain);
      const suspended = this.#suspends.get(port);
      if (suspended !== undefined) this.#tell({ kind: "suspended", domid: suspended });
    }
  }

  /** Looks at every ring, whether or not an event said so. */
  serveRings(): void {
    for (const domain of this.#domains.values()) this.#serve(domain);
  }

  /** A little of what can wait. Whether there is more. */
  background(): boolean {
    let more = false;
    for (const domain of [...this.#domains.values()]) {
      if (domain.releaseCursor !== undefined && this.#releaseSome(domain)) more = true;
    }
    return more;
  }

  [Symbol.dispose](): void {
    for (const domain of [...this.#domains.values()]) this.#drop(domain);
    this.#events[Symbol.dispose]();
    this.#arena[Symbol.dispose]();
    this.#zeroPage[Symbol.dispose]();
  }

  #domain(domid: Domid): HeldDomain {
    const domain = this.#domains.get(domid);
    if (domain === undefined) throw new Error(`Domain ${domid} is not held`);
    return domain;
  }

  #tell(event: MemoryEvent): void {
    if (this.#news.length < MAX_EVENTS) this.#news.push(event);
    this.#onNews?.();
    this.#onNews = undefined;
    this.#settled = true;
  }

  #serve(domain: HeldDomain): void {
    if (domain.lost !== undefined) return;
    try {
      for (const request of domain.ring.takeRequests()) {
        domain.counters.requests++;
        if (this.#answer(domain, request)) this.#respond(domain, request);
      }
    } catch (error) {
      // One domain's trouble is not another's: it is told, and the thread goes on.
      this.#lose(domain, error instanceof Error ? error.message : String(error));
    }
  }

  #respond(domain: HeldDomain, request: PagingRequest): void {
    domain.ring.respond(request);
    this.#events.notify(domain.port);
  }

  /** Does what a request asks for. Whether it can be answered now. */
  #answer(domain: HeldDomain, request: PagingRequest): boolean {
    if (request.drop) return true;
    const index = domain.map.indexOf(request.gfn);
    const gfn = request.gfn as Gfn;
    if (index < 0) {
      this.#xen.prep(domain.domid, gfn, 0n);
      return true;
    }
    if (domain.state[index] === PageState.nominated) return this.#touched(domain, index, gfn);
    if (domain.state[index] === PageState.present) {
      // Asked for twice: it came in between. A page that is not there after all has been lost from the books.
      if (this.#xen.prep(domain.domid, gfn, 0n) !== -errno("EINVAL")) return true;
      if (domain.source === undefined) return this.#lose(domain, `page ${gfn.toString(16)} is nowhere`);
    }
    const result = this.#bringIn(domain, index, gfn, "faulted");
    if (result === "awaited") {
      const waiting = domain.waiting.get(index);
      if (waiting === undefined) domain.waiting.set(index, [request]);
      else waiting.push(request);
    }
    return result === "in";
  }

  /** First touch of a nominated page: every open snapshot that needs it gets its content. */
  #touched(domain: HeldDomain, index: number, gfn: Gfn): boolean {
    domain.counters.touched++;
    const needing = [...domain.snapshots].filter((snapshot) => snapshot.isLive(index));
    if (needing.length > 0) {
      try {
        copyPages(
          this.#machine.foreignMemory,
          this.#arena,
          domain.domid,
          domain.map,
          Uint32Array.of(index),
          (_, slot) => {
            for (const snapshot of needing) {
              if (slot === undefined) snapshot.markZero(index);
              else snapshot.save(index, slot);
            }
          },
        );
      } catch (error) {
        if (!(error instanceof ArenaFull)) throw error;
        // The parent comes first: its clones lose the page, it goes on.
        for (const snapshot of needing) snapshot.break(error.message);
      }
    }
    this.#xen.prep(domain.domid, gfn, 0n);
    domain.state[index] = PageState.present;
    return true;
  }

  #bringIn(domain: HeldDomain, index: number, gfn: Gfn, cause: "faulted" | "pushed"): "in" | "awaited" | "lost" {
    const located = domain.source?.locate(index) ?? { kind: "gone" as const, reason: "it has no source of memory" };
    let result: number;
    switch (located.kind) {
      case "gone":
        this.#lose(domain, located.reason);
        return "lost";
      case "elsewhere":
        domain.state[index] = PageState.awaited;
        return "awaited";
      case "memory":
        result = this.#xen.prep(domain.domid, gfn, located.address);
        domain.counters[cause]++;
        break;
      case "zero":
        result = this.#xen.prep(domain.domid, gfn, this.#zeroPage.address);
        domain.counters[located.cause === "free" ? "avoidedFree" : "zero"]++;
        break;
      case "frame": {
        using mapping = this.#machine.foreignMemory.map(located.domid, BigUint64Array.of(located.gfn), {
          write: false,
        });
        if (mapping.errors[0] !== 0) {
          this.#lose(domain, `frame ${located.gfn.toString(16)} of domain ${located.domid} is gone`);
          return "lost";
        }
        result = this.#xen.prep(domain.domid, gfn, mapping.address);
        domain.counters[cause]++;
        break;
      }
    }
    if (result !== 0 && result !== -errno("ENOENT")) {
      const reason = result === -errno("ENOMEM") ? "the host has no memory left" : `errno ${-result}`;
      this.#lose(domain, `page ${gfn.toString(16)} cannot be brought in: ${reason}`);
      return "lost";
    }
    domain.state[index] = PageState.present;
    return "in";
  }

  #lose(domain: HeldDomain, reason: string): false {
    if (domain.lost === undefined) {
      domain.lost = reason;
      this.#tell({ kind: "lost", domid: domain.domid, reason });
    }
    return false;
  }

  #copyInto(snapshot: Snapshot, indexes: Uint32Array, report: { holes: number }): number {
    let copied = 0;
    copyPages(this.#machine.foreignMemory, this.#arena, snapshot.owner, snapshot.map, indexes, (index, slot) => {
      if (slot === undefined) {
        snapshot.markZero(index);
        report.holes++;
      } else {
        snapshot.save(index, slot);
        copied++;
      }
    });
    return copied;
  }

  #nominate(
    domain: HeldDomain,
    snapshot: Snapshot,
    indexes: Uint32Array,
    report: { nominated: number; copied: number; holes: number },
  ): void {
    const results = this.#xen.nominate(domain.domid, domain.map.gfnsOf(indexes));
    const refused: number[] = [];
    indexes.forEach((index, at) => {
      if (results[at] === 0) {
        domain.state[index] = PageState.nominated;
        report.nominated++;
      } else refused.push(index);
    });
    report.copied += this.#copyInto(snapshot, Uint32Array.from(refused), report);
  }

  #startRelease(domain: HeldDomain): void {
    if (domain.snapshots.size > 0 || !this.#domains.has(domain.domid)) return;
    domain.releaseCursor = 0;
  }

  /** Gives a few nominated pages back. Whether there may be more. */
  #releaseSome(domain: HeldDomain): boolean {
    let at = domain.releaseCursor ?? 0;
    const end = Math.min(domain.map.pages, at + RELEASE_SCAN);
    let asked = 0;
    for (; at < end && asked < RELEASE_BATCH; at++) {
      if (domain.state[at] !== PageState.nominated) continue;
      const result = this.#xen.setMemoryType(domain.domid, 0, domain.map.gfnAt(at), 1);
      if (result === 0) domain.state[at] = PageState.present;
      else asked++;
    }
    if (asked > 0) this.#serve(domain);
    if (at < domain.map.pages) {
      domain.releaseCursor = at;
      return true;
    }
    // A full ring refuses a request without a word: what is still nominated is asked for again.
    if (domain.count(PageState.nominated) > 0) {
      domain.releaseCursor = 0;
      return true;
    }
    domain.releaseCursor = undefined;
    this.#wakeOrphans(domain);
    if (domain.source === undefined) this.#drop(domain);
    return false;
  }

  /** vCPUs that waited for an answer of the process that died. One may have asked for several pages in one hypercall. */
  #wakeOrphans(domain: HeldDomain): void {
    const gfn = domain.map.gfnAt(0);
    for (let vcpu = 0; vcpu < domain.orphanedVcpus; vcpu++) {
      for (let time = 0; time < ORPHAN_ANSWERS; time++) {
        domain.ring.respondForLost(vcpu, gfn);
        this.#events.notify(domain.port);
      }
    }
    domain.orphanedVcpus = 0;
  }

  #drop(domain: HeldDomain): void {
    this.#domains.delete(domain.domid);
    this.#byPort.delete(domain.port);
    domain.releaseCursor = undefined;
    const alive = this.#xen.domainInfo(domain.domid);
    if (alive !== undefined && !alive.dying) {
      this.#serve(domain);
      this.#xen.pagingDisable(domain.domid);
    }
    this.#events.unbind(domain.port);
    domain.ringMapping[Symbol.dispose]();
    domain.source?.release();
    domain.source = undefined;
    for (const resolve of domain.onReleased.splice(0)) {
      resolve();
      this.#settled = true;
    }
  }
}
