import type { Domid, ForeignMapping, Gfn, Port } from "../../hypercall/ports.ts";
import type { PagingRequest, PagingRing } from "../../hypercall/ring.ts";
import type { Filling } from "./filling.ts";
import type { MemoryMap } from "./memory_map.ts";
import type { PageSource, Snapshot } from "./snapshot.ts";

/** What a domain has at a page of its map. */
export const PageState = {
  /** The page is the domain's, and nobody is told of a touch. */
  present: 0,
  /** Paged out: the first touch asks for it. */
  absent: 1,
  /** Here, and the first touch is reported before it happens, for open snapshots. */
  nominated: 2,
  /** Paged out and asked for from another host. */
  awaited: 3,
} as const;

/** Counts since the domain is held. Every page of a clone was brought in by exactly one of the causes. */
export interface MemoryCounters {
  /** Requests that the ring brought. */
  requests: number;
  /** Pages that came from a saved copy or the parent's frame because a vCPU or a back end asked. */
  faulted: number;
  /** Pages that another host sent because they were asked for. */
  fetched: number;
  /** Pages that came before they were asked for: must-have pages and pushes. */
  pushed: number;
  /** Zeros for pages that were no page, or zero, at the fork. */
  zero: number;
  /** Zeros for pages that the parent's kernel held free at the fork. */
  avoidedFree: number;
  /** First touches of nominated pages. */
  touched: number;
}

/** A domain whose paging ring this process serves. It may be a clone, a parent, or both. */
export class HeldDomain {
  readonly domid: Domid;
  readonly map: MemoryMap;
  readonly ring: PagingRing;
  readonly ringMapping: ForeignMapping;
  readonly ringGfn: Gfn;
  readonly port: Port;
  readonly state: Uint8Array;
  /** Where its absent pages come from. */
  source: PageSource | undefined;
  /** Snapshots of it that clones still use. */
  readonly snapshots = new Set<Snapshot>();
  /** Requests whose page another host was asked for, by page index. */
  readonly waiting = new Map<number, PagingRequest[]>();
  readonly counters: MemoryCounters = {
    requests: 0,
    faulted: 0,
    fetched: 0,
    pushed: 0,
    zero: 0,
    avoidedFree: 0,
    touched: 0,
  };
  /** Its memory is being brought in though nobody asks. */
  filling: Filling | undefined;
  /** Why it cannot go on, once it cannot. */
  lost: string | undefined;
  /** Where the release of nominated pages has got to; undefined while none is under way. */
  releaseCursor: number | undefined;
  /** vCPUs that may wait for an answer which nobody will give: the domain was taken over. */
  orphanedVcpus = 0;
  /** Those who wait for the ring to be closed. */
  readonly onReleased: (() => void)[] = [];

  constructor(
    parts: { domid: Domid; map: MemoryMap; ring: PagingRing; ringMapping: ForeignMapping; ringGfn: Gfn; port: Port },
    absent: boolean,
  ) {
    this.domid = parts.domid;
    this.map = parts.map;
    this.ring = parts.ring;
    this.ringMapping = parts.ringMapping;
    this.ringGfn = parts.ringGfn;
    this.port = parts.port;
    this.state = new Uint8Array(parts.map.pages).fill(absent ? PageState.absent : PageState.present);
  }

  /** Pages in `state`. */
  count(state: number): number {
    let pages = 0;
    for (const page of this.state) if (page === state) pages++;
    return pages;
  }
}

/** A domain's memory at a moment, in pages. */
export interface MemoryReport extends MemoryCounters {
  readonly pages: number;
  readonly resident: number;
  readonly absent: number;
  readonly nominated: number;
  readonly snapshots: number;
  readonly saved: number;
}

export function reportOf(domain: HeldDomain): MemoryReport {
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
