/**
 * Pages between hosts: this host's snapshots are served to others, and pages of other hosts' snapshots are fetched. What one clone
 * fetches comes in for every clone of this host that lacks it.
 */
import type { Address, ForeignMapping, ForeignMemoryPort } from "../../hypercall/ports.ts";
import { type BlockSource, type Distribution, parseEndpoint, parseId } from "../../multicast/mod.ts";
import { type HeldDomain, PageState } from "./held_domain.ts";
import type { HeldDomains } from "./held_domains.ts";
import { type GfnRange, MemoryMap } from "./memory_map.ts";
import type { PageArena } from "./page_arena.ts";
import { RemoteSnapshot } from "./remote_snapshot.ts";
import type { PageSource, Snapshot } from "./snapshot.ts";
import type { Supply } from "./supply.ts";

/** After so long without an answer the host with the memory counts as gone. */
const UNREACHABLE_MS = 20_000;
const UNREACHABLE = "the host with memory of its parent is unreachable";

export interface FamilyChannel {
  /** 32 hexadecimal digits. */
  readonly family: string;
  /** 32 bytes, in hexadecimal. */
  readonly key: string;
  readonly mode: "multicast" | "unicast";
}

export interface RemoteSource extends FamilyChannel {
  readonly snapshot: string;
  /** `10.0.0.1:7102`, where the snapshot's host serves pages. */
  readonly server: string;
  readonly ranges: readonly GfnRange[];
  readonly free: Uint32Array;
}

export interface ExchangePorts {
  readonly distribution: Distribution;
  readonly foreignMemory: ForeignMemoryPort;
  readonly arena: PageArena;
  readonly domains: HeldDomains;
  readonly supply: Supply;
  readonly nowMs: () => number;
  /** A promise of `fetched` was settled. */
  readonly settled: () => void;
}

/** A wait for pages: which are still to come. */
interface Fetch {
  readonly left: Set<number>;
  readonly promise: PromiseWithResolvers<void>;
}

interface Remote {
  readonly snapshot: RemoteSnapshot;
  readonly family: string;
  readonly fetches: Set<Fetch>;
}

export class PageExchange implements Disposable {
  readonly #ports: ExchangePorts;
  readonly #families = new Map<string, number>();
  readonly #remotes = new Map<RemoteSnapshot, Remote>();
  /** Snapshots that are served, with pages that were asked for and are on another host themselves. */
  readonly #served = new Map<string, { readonly snapshot: Snapshot; readonly later: Set<number> }>();
  #scratch: ForeignMapping | undefined;

  constructor(ports: ExchangePorts) {
    this.#ports = ports;
  }

  get fds(): readonly number[] {
    return this.#ports.distribution.fds;
  }

  /** Serves a snapshot to the family's hosts until it ends. Once a snapshot. */
  serve(channel: FamilyChannel, snapshot: Snapshot): void {
    if (this.#served.has(snapshot.id)) return;
    this.#join(channel);
    this.#served.set(snapshot.id, { snapshot, later: new Set() });
    const source: BlockSource = { readBlock: (index) => this.#read(snapshot, index) };
    this.#ports.distribution.addServed(parseId(channel.family), parseId(snapshot.id), snapshot.map.pages, source);
    const { ended } = snapshot;
    snapshot.ended = () => {
      this.#served.delete(snapshot.id);
      this.#ports.distribution.drop(parseId(snapshot.id));
      this.#part(channel.family);
      ended();
    };
  }

  /** Makes another host's snapshot known; the caller is its first user. */
  open(remote: RemoteSource): RemoteSnapshot {
    const snapshot = new RemoteSnapshot(remote.snapshot, new MemoryMap(remote.ranges), remote.free);
    this.#join(remote);
    const entry: Remote = { snapshot, family: remote.family, fetches: new Set() };
    this.#remotes.set(snapshot, entry);
    this.#ports.distribution.addWanted(parseId(remote.family), parseId(remote.snapshot), {
      blocks: snapshot.map.pages,
      server: parseEndpoint(remote.server),
      sink: {
        onBlock: (index, block) => this.#arrived(entry, index, block === "zero" ? undefined : block),
        onAbsent: (index) => this.#broken(entry, `page ${index} is not at its parent's host`),
        onGone: () => this.#broken(entry, "its parent's host does not have the memory any more"),
        onStalled: (silentMs) => {
          if (silentMs >= UNREACHABLE_MS) this.#broken(entry, UNREACHABLE);
        },
      },
    });
    snapshot.ended = () => {
      this.#remotes.delete(snapshot);
      for (const fetch of entry.fetches) fetch.promise.reject(new Error("the clone that the pages were for has ended"));
      if (entry.fetches.size > 0) this.#ports.settled();
      entry.fetches.clear();
      this.#ports.distribution.drop(parseId(snapshot.id));
      this.#part(remote.family);
    };
    return snapshot;
  }

  /** A vCPU, or a back end, waits for a page. */
  ask(source: PageSource, index: number): void {
    this.#ports.distribution.request(parseId(source.id), [index], { urgent: true }, this.#ports.nowMs());
  }

  /** Fetches pages that nobody waits for yet. Resolves when all have come in for the clones of this host. */
  fetch(source: RemoteSnapshot, indexes: readonly number[]): Promise<void> {
    const entry = this.#remotes.get(source);
    if (entry === undefined) return Promise.reject(new Error(`snapshot ${source.id} is not known`));
    if (source.unreachable !== undefined) return Promise.reject(new Error(source.unreachable));
    if (indexes.length === 0) return Promise.resolve();
    const fetch: Fetch = { left: new Set(indexes), promise: Promise.withResolvers<void>() };
    entry.fetches.add(fetch);
    this.#ports.distribution.request(parseId(source.id), indexes, { urgent: false }, this.#ports.nowMs());
    return fetch.promise.promise;
  }

  onReadable(fd: number): void {
    this.#ports.distribution.onReadable(fd, this.#ports.nowMs());
    this.#forget();
  }

  /** Milliseconds until {@link onTimer} is due; undefined when nothing is under way. */
  dueMs(): number | undefined {
    const due = this.#ports.distribution.nextDeadlineMs();
    return due === undefined ? undefined : Math.max(0, due - this.#ports.nowMs());
  }

  onTimer(): void {
    this.#ports.distribution.onTimer(this.#ports.nowMs());
    this.#forget();
  }

  /** The server of a remote snapshot is known to be gone. */
  lost(id: string): void {
    for (const entry of [...this.#remotes.values()]) if (entry.snapshot.id === id) this.#broken(entry, UNREACHABLE);
  }

  [Symbol.dispose](): void {
    this.#forget();
    this.#ports.distribution[Symbol.dispose]();
  }

  #join({ family, key, mode }: FamilyChannel): void {
    const users = this.#families.get(family) ?? 0;
    if (users === 0) this.#ports.distribution.openFamily(parseId(family), { key: Uint8Array.fromHex(key), mode });
    this.#families.set(family, users + 1);
  }

  #part(family: string): void {
    const users = (this.#families.get(family) ?? 1) - 1;
    if (users > 0) this.#families.set(family, users);
    else {
      this.#families.delete(family);
      this.#ports.distribution.closeFamily(parseId(family));
    }
  }

  #read(snapshot: Snapshot, index: number): Uint8Array | "zero" | "absent" | "later" {
    this.#forget();
    const located = snapshot.locate(index);
    switch (located.kind) {
      case "memory":
        return located.bytes;
      case "zero":
        return "zero";
      case "gone":
        return "absent";
      case "frame": {
        this.#scratch = this.#ports.foreignMemory.map(located.domid, BigUint64Array.of(located.gfn), { write: false });
        return this.#scratch.errors[0] === 0 ? this.#scratch.bytes : "absent";
      }
      case "elsewhere":
        this.#served.get(snapshot.id)?.later.add(index);
        this.ask(located.source, index);
        return "later";
    }
  }

  /** The mapping of the last frame that was served: its reader is done with it. */
  #forget(): void {
    this.#scratch?.[Symbol.dispose]();
    this.#scratch = undefined;
  }

  #arrived(
    entry: Remote,
    index: number,
    block: { readonly address: Address; readonly bytes: Uint8Array } | undefined,
  ): void {
    for (const domain of this.#ports.domains.all()) this.#give(domain, entry.snapshot, index, block?.address);
    for (const { snapshot, later } of this.#served.values()) {
      if (!later.delete(index)) continue;
      if (block === undefined) snapshot.markZero(index);
      else {
        const slot = this.#ports.arena.take();
        this.#ports.arena.bytes(slot).set(block.bytes);
        snapshot.adopt(index, slot);
        this.#ports.arena.release(slot);
      }
      this.#ports.distribution.offer(parseId(snapshot.id), [index], this.#ports.nowMs());
    }
    for (const fetch of entry.fetches) {
      if (!fetch.left.delete(index) || fetch.left.size > 0) continue;
      entry.fetches.delete(fetch);
      fetch.promise.resolve();
      this.#ports.settled();
    }
  }

  /** Gives a page to a domain that lacks it. */
  #give(domain: HeldDomain, source: RemoteSnapshot, index: number, address: Address | undefined): void {
    const state = domain.state[index];
    if (state !== PageState.absent && state !== PageState.awaited) return;
    const located = domain.source?.locate(index);
    if (located?.kind !== "elsewhere" || located.source !== source) return;
    const cause = state === PageState.awaited ? "fetched" : "pushed";
    if (this.#ports.supply.bringReceived(domain, index, address, cause) !== "in") return;
    const waiting = domain.waiting.get(index);
    domain.waiting.delete(index);
    for (const request of waiting ?? []) this.#ports.domains.respond(domain, request);
  }

  /** No more pages of a snapshot will come: clones that wait for one, or will, are lost. Those that are whole go on. */
  #broken(entry: Remote, reason: string): void {
    entry.snapshot.break(reason);
    for (const domain of this.#ports.domains.all()) {
      if (domain.source !== entry.snapshot) continue;
      if (this.#ports.supply.lacking(domain).length > 0) this.#ports.domains.lose(domain, reason);
    }
    for (const fetch of entry.fetches) fetch.promise.reject(new Error(reason));
    entry.fetches.clear();
    this.#ports.settled();
  }
}
