/**
 * Serves the paging rings of this host: first touches of parents, absent pages of clones. One object on one thread, so
 * that a touch, a page being served and a fault need no locks.
 */
import { errno } from "../../hypercall/errors.ts";
import type { Domid, EventChannelPort, Gfn, Machine, PinnedMemory, Poller, Port } from "../../hypercall/ports.ts";
import { PAGE_BYTES } from "../../hypercall/ports.ts";
import type { PagingRequest } from "../../hypercall/ring.ts";
import type { Xen } from "../../hypercall/xen_api.ts";
import type { Distribution } from "../../multicast/mod.ts";
import { copyPages, saveLive } from "./copy_pages.ts";
import { type FamilyChannel, PageExchange, type RemoteSource } from "./exchange.ts";
import { type Filling, fillSome, Zeros } from "./filling.ts";
import { type HeldDomain, type MemoryReport, PageState, reportOf } from "./held_domain.ts";
import { HeldDomains } from "./held_domains.ts";
import type { GfnRange } from "./memory_map.ts";
import { PageArena } from "./page_arena.ts";
import { releaseSome } from "./release.ts";
import { RemoteSnapshot } from "./remote_snapshot.ts";
import { type PageSource, Snapshot } from "./snapshot.ts";
import { Supply } from "./supply.ts";
import { fillSnapshot, type SnapshotPages, type SnapshotReport } from "./take_snapshot.ts";

/** Things to tell that are kept while nobody listens. */
const MAX_EVENTS = 4096;

/** What the service tells of its own accord. */
export type MemoryEvent =
  | { readonly kind: "suspended"; readonly domid: Domid }
  | { readonly kind: "lost"; readonly domid: Domid; readonly reason: string };

export interface MemoryServiceOptions {
  /** Most pages of saved copies. */
  readonly arenaPages: number;
}

export class MemoryService implements Disposable {
  readonly #machine: Machine;
  readonly #xen: Xen;
  readonly #events: EventChannelPort;
  readonly #arena: PageArena;
  readonly #zeroPage: PinnedMemory;
  readonly #domains: HeldDomains;
  readonly #supply: Supply;
  readonly #exchange: PageExchange | undefined;
  readonly #suspends = new Map<Port, Domid>();
  readonly #snapshots = new Map<string, PageSource>();
  readonly #news: MemoryEvent[] = [];
  #onNews: (() => void) | undefined;
  #settled = false;

  /** `distribution`: the way to other hosts, if there is one; the service owns it from now on. */
  constructor(
    machine: Machine,
    xen: Xen,
    poller: Poller,
    options: MemoryServiceOptions,
    distribution?: { readonly distribution: Distribution; readonly nowMs: () => number },
  ) {
    this.#machine = machine;
    this.#xen = xen;
    this.#events = machine.openEventChannels();
    poller.add(this.#events.fd);
    this.#arena = new PageArena(machine.hypercalls, options.arenaPages);
    this.#zeroPage = machine.hypercalls.allocate(PAGE_BYTES);
    this.#domains = new HeldDomains(
      xen,
      machine.foreignMemory,
      this.#events,
      ({ domid }, reason) => this.#tell({ kind: "lost", domid, reason }),
    );
    this.#supply = new Supply(xen, machine.foreignMemory, this.#domains, this.#zeroPage);
    if (distribution === undefined) return;
    this.#exchange = new PageExchange({
      ...distribution,
      foreignMemory: machine.foreignMemory,
      arena: this.#arena,
      domains: this.#domains,
      supply: this.#supply,
      settled: () => this.#settled = true,
    });
    for (const fd of this.#exchange.fds) poller.add(fd);
  }

  /**
   * Takes a domain's paging ring. `absent` says that all its RAM is (or is going to be) paged out. A domain that is held already
   * stays held: it is about to be forked again, and what is nominated may stay so.
   */
  openDomain(domid: Domid, ranges: readonly GfnRange[], ringGfn: Gfn, absent: boolean): void {
    const held = this.#domains.get(domid);
    if (held === undefined) this.#domains.open(domid, ranges, ringGfn, absent);
    else held.releaseCursor = undefined;
  }

  /** After a restart: takes the ring of a domain that another process held when it died, and gives all its pages back. */
  takeOver(domid: Domid, ranges: readonly GfnRange[], ringGfn: Gfn, vcpus: number): void {
    this.#startRelease(this.#domains.takeOver(domid, ranges, ringGfn, vcpus));
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

  /** Makes a snapshot of a suspended domain. The caller is its first user. */
  takeSnapshot(id: string, domid: Domid, pages: SnapshotPages): SnapshotReport {
    const domain = this.#domains.expect(domid);
    if (this.#snapshots.has(id)) throw new Error(`Cannot take snapshot ${id}: it exists`);
    if (domain.orphanedVcpus > 0) throw new Error(`Cannot take snapshot ${id}: domain ${domid} was taken over`);
    const snapshot = new Snapshot(id, domid, domain.map, this.#arena);
    snapshot.ended = () => {
      this.#snapshots.delete(id);
      domain.snapshots.delete(snapshot);
      this.#startRelease(domain);
    };
    domain.releaseCursor = undefined;
    domain.snapshots.add(snapshot);
    this.#snapshots.set(id, snapshot);
    try {
      const { foreignMemory } = this.#machine;
      const ports = { xen: this.#xen, foreignMemory, arena: this.#arena, serveRings: () => this.serveRings() };
      return fillSnapshot(ports, domain, snapshot, pages);
    } catch (error) {
      snapshot.release();
      throw error;
    }
  }

  /** Absent pages of `domid` come from snapshot `id` from now on. */
  attachSource(domid: Domid, id: string): void {
    const domain = this.#domains.expect(domid);
    const source = this.#source(id);
    source.retain();
    domain.source?.release();
    domain.source = source;
  }

  /** Gives up the caller's use of a snapshot. It ends with its last clone. */
  releaseSnapshot(id: string): void {
    this.#snapshots.get(id)?.release();
  }

  /** Lets other hosts of the family have pages of a snapshot. */
  serveSnapshot(id: string, channel: FamilyChannel): void {
    const snapshot = this.#source(id);
    if (!(snapshot instanceof Snapshot)) throw new Error(`Snapshot ${id} is another host's`);
    this.#reachable().serve(channel, snapshot);
  }

  /** Makes another host's snapshot known. The caller is its first user. */
  openRemoteSnapshot(remote: RemoteSource): void {
    if (this.#snapshots.has(remote.snapshot)) throw new Error(`Cannot open snapshot ${remote.snapshot}: it exists`);
    const snapshot = this.#reachable().open(remote);
    this.#snapshots.set(snapshot.id, snapshot);
    const { ended } = snapshot;
    snapshot.ended = () => {
      this.#snapshots.delete(snapshot.id);
      ended();
    };
  }

  /** Brings pages in before anybody asks: those that must be there, or are likely to be wanted. Resolves when they are. */
  async push(domid: Domid, indexes: Uint32Array): Promise<void> {
    const domain = this.#domains.expect(domid);
    const { elsewhere } = this.#supply.push(domain, indexes);
    const bySource = Map.groupBy(elsewhere, (index) => {
      const located = domain.source?.locate(index);
      return located?.kind === "elsewhere" && located.source instanceof RemoteSnapshot ? located.source : undefined;
    });
    for (const [source, wanted] of bySource) {
      if (source !== undefined) await this.#reachable().fetch(source, wanted);
    }
    if (domain.lost !== undefined) throw new Error(domain.lost);
  }

  /**
   * Brings in everything that a clone lacks, at low priority, so that it can outlive its parent. Resolves when it is whole, and needs its
   * source no more, or when the host has no memory to spare.
   */
  async fill(domid: Domid): Promise<void> {
    const domain = this.#domains.expect(domid);
    const indexes = this.#supply.lacking(domain);
    domain.filling ??= { indexes, at: 0, done: Promise.withResolvers<void>() };
    await domain.filling.done.promise;
    const left = this.#supply.lacking(domain).filter((index) => domain.source?.locate(index).kind === "elsewhere");
    await this.push(domid, left);
    if (this.#domains.get(domid) !== domain || this.#supply.lacking(domain).length > 0) return;
    domain.source?.release();
    domain.source = new Zeros(domain.map);
  }

  /** The host with a snapshot is known to be gone. */
  snapshotLost(id: string): void {
    this.#exchange?.lost(id);
  }

  /**
   * Lets go of a domain, for its end or because it is whole. With `keep`, what clones still need of its memory is copied
   * first, so that they outlive it; without, they learn that it is gone. Nothing happens for a domain that is not held.
   */
  closeDomain(domid: Domid, keep: boolean): void {
    const domain = this.#domains.get(domid);
    if (domain === undefined) return;
    for (const snapshot of domain.snapshots) {
      try {
        if (!keep) throw new Error(`the machine they were forked from (domain ${domid}) is gone`);
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

  report(domid: Domid): MemoryReport | undefined {
    const domain = this.#domains.get(domid);
    return domain === undefined ? undefined : reportOf(domain);
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

  /** Something of the machine, or of the network, became readable. */
  onReadable(fd: number): void {
    if (fd !== this.#events.fd) {
      this.#exchange?.onReadable(fd);
      return;
    }
    for (const port of this.#events.pending()) {
      // Unmasked before the ring is drained: a request that comes in between fires again.
      this.#events.unmask(port);
      const domain = this.#domains.byPort(port);
      if (domain !== undefined) this.#serve(domain);
      const suspended = this.#suspends.get(port);
      if (suspended !== undefined) this.#tell({ kind: "suspended", domid: suspended });
    }
  }

  /** Milliseconds until {@link onTimer} is due; undefined when nothing is under way. */
  dueMs(): number | undefined {
    return this.#exchange?.dueMs();
  }

  onTimer(): void {
    this.#exchange?.onTimer();
  }

  /** Looks at every ring, whether or not an event said so. */
  serveRings(): void {
    for (const domain of this.#domains.all()) this.#serve(domain);
  }

  /** A little of what can wait. Whether there is more. */
  background(): boolean {
    let more = false;
    for (const domain of this.#domains.all()) {
      if (domain.filling !== undefined && this.#fillSome(domain, domain.filling)) more = true;
      if (domain.releaseCursor === undefined) continue;
      if (releaseSome(this.#xen, domain, () => this.#serve(domain))) more = true;
      else if (domain.source === undefined) {
        this.#settled ||= domain.onReleased.length > 0;
        this.#domains.letGo(domain);
      }
    }
    return more;
  }

  [Symbol.dispose](): void {
    for (const domain of this.#domains.all()) {
      this.#domains.drop(domain, domain.count(PageState.present) < domain.map.pages);
    }
    this.#exchange?.[Symbol.dispose]();
    this.#events[Symbol.dispose]();
    this.#arena[Symbol.dispose]();
    this.#zeroPage[Symbol.dispose]();
  }

  #source(id: string): PageSource {
    const source = this.#snapshots.get(id);
    if (source === undefined) throw new Error(`Snapshot ${id} has ended, or never was`);
    return source;
  }

  #reachable(): PageExchange {
    if (this.#exchange === undefined) throw new Error("This host exchanges no pages with others: it has no peers");
    return this.#exchange;
  }

  #tell(event: MemoryEvent): void {
    if (this.#news.length < MAX_EVENTS) this.#news.push(event);
    this.#onNews?.();
    this.#onNews = undefined;
    this.#settled = true;
  }

  #serve(domain: HeldDomain): void {
    // A clone that is lost is about to end. A parent goes on, whatever its clones have lost.
    if (domain.lost !== undefined && domain.source !== undefined) return;
    try {
      for (const request of domain.ring.takeRequests()) {
        domain.counters.requests++;
        if (this.#answer(domain, request)) this.#domains.respond(domain, request);
      }
    } catch (error) {
      // One domain's trouble is not another's: it is told, and the thread goes on.
      this.#domains.lose(domain, error instanceof Error ? error.message : String(error));
    }
  }

  /** Does what a request asks for. Whether it can be answered now. */
  #answer(domain: HeldDomain, request: PagingRequest): boolean {
    if (request.drop) return true;
    const index = domain.map.indexOf(request.gfn);
    if (index < 0) {
      this.#xen.prep(domain.domid, request.gfn, 0n);
      return true;
    }
    if (domain.state[index] === PageState.nominated) return this.#touched(domain, index, request.gfn);
    if (domain.state[index] === PageState.present) {
      // Asked for twice: it came in between. A page that is not there after all has been lost from the books.
      if (this.#xen.prep(domain.domid, request.gfn, 0n) !== -errno("EINVAL")) return true;
    }
    const supplied = this.#supply.bringIn(domain, index, "faulted");
    if (typeof supplied === "object") this.#await(domain, index, request, supplied.source);
    return supplied === "in";
  }

  #await(domain: HeldDomain, index: number, request: PagingRequest, source: PageSource): void {
    const waiting = domain.waiting.get(index);
    if (waiting === undefined) domain.waiting.set(index, [request]);
    else waiting.push(request);
    domain.state[index] = PageState.awaited;
    this.#reachable().ask(source, index);
  }

  /** First touch of a nominated page: every open snapshot that needs it gets its content. */
  #touched(domain: HeldDomain, index: number, gfn: Gfn): boolean {
    domain.counters.touched++;
    const needing = [...domain.snapshots].filter((snapshot) => snapshot.isLive(index));
    try {
      const wanted = needing.length > 0 ? Uint32Array.of(index) : new Uint32Array();
      copyPages(this.#machine.foreignMemory, this.#arena, domain.domid, domain.map, wanted, (_, slot) => {
        for (const snapshot of needing) {
          if (slot === undefined) snapshot.markZero(index);
          else snapshot.save(index, slot);
        }
      });
    } catch (error) {
      // The parent comes first: its clones lose the page, it goes on.
      const reason = error instanceof Error ? error.message : String(error);
      for (const snapshot of needing) snapshot.break(reason);
    }
    this.#xen.prep(domain.domid, gfn, 0n);
    domain.state[index] = PageState.present;
    return true;
  }

  /** Whether there is more to bring in. */
  #fillSome(domain: HeldDomain, filling: Filling): boolean {
    try {
      if (fillSome(this.#xen, this.#supply, domain, filling)) return true;
      filling.done.resolve();
    } catch (error) {
      // Nobody waits for these pages: the clone goes on, and asks for what it needs.
      filling.done.reject(error);
    }
    domain.filling = undefined;
    this.#settled = true;
    return false;
  }

  #startRelease(domain: HeldDomain): void {
    if (domain.snapshots.size === 0 && this.#domains.get(domain.domid) === domain) domain.releaseCursor = 0;
  }

  #drop(domain: HeldDomain): void {
    if (domain.onReleased.length > 0 || domain.filling !== undefined) this.#settled = true;
    domain.filling?.done.resolve();
    domain.filling = undefined;
    this.#domains.drop(domain);
  }
}
