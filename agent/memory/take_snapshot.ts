import type { ForeignMemoryPort } from "../../hypercall/ports.ts";
import type { Xen } from "../../hypercall/xen_api.ts";
import { copyPages } from "./copy_pages.ts";
import { type HeldDomain, PageState } from "./held_domain.ts";
import type { PageArena } from "./page_arena.ts";
import type { Snapshot } from "./snapshot.ts";

/** Pages that are nominated between two looks at the rings. */
const NOMINATE_BATCH = 4096;

export interface SnapshotPorts {
  readonly xen: Xen;
  readonly foreignMemory: ForeignMemoryPort;
  readonly arena: PageArena;
  /** Looks at every ring: other domains go on while a parent's pages are nominated. */
  readonly serveRings: () => void;
}

export interface SnapshotPages {
  /** Pages to copy at once: they were written while the parent suspended, and every clone needs them. */
  readonly hot: Uint32Array;
  /** Pages that nobody will read. */
  readonly free: Uint32Array;
  /** The parent never runs again while the snapshot lives: nothing is nominated. */
  readonly frozen: boolean;
}

export interface SnapshotReport {
  readonly nominated: number;
  /** Pages that were copied at the fork: hot ones, and those that Xen or a back end holds a reference to. */
  readonly copied: number;
  readonly inherited: number;
  readonly free: number;
  readonly holes: number;
}

/** Decides for each page of a suspended parent where its content will be, and sees to it. Throws if the arena is full. */
export function fillSnapshot(
  ports: SnapshotPorts,
  domain: HeldDomain,
  snapshot: Snapshot,
  { hot, free, frozen }: SnapshotPages,
): SnapshotReport {
  const report = { nominated: 0, copied: 0, inherited: 0, free: 0, holes: 0 };
  const open = new Uint8Array(domain.map.pages).fill(1);
  const close = (index: number): boolean => {
    const was = open[index] === 1;
    open[index] = 0;
    return was;
  };
  domain.state.forEach((state, index) => {
    if (state !== PageState.absent && state !== PageState.awaited) return;
    if (domain.source === undefined) throw new Error(`page ${index} of domain ${domain.domid} has no source`);
    snapshot.markInherited(index, domain.source);
    close(index);
    report.inherited++;
  });
  copyInto(ports, snapshot, hot.filter(close), report);
  for (const index of free.filter(close)) {
    snapshot.markFree(index);
    report.free++;
  }
  if (frozen) return report;
  const rest: number[] = [];
  open.forEach((wanted, index) => {
    if (wanted === 0) return;
    if (domain.state[index] === PageState.nominated) report.nominated++;
    else rest.push(index);
  });
  for (let at = 0; at < rest.length; at += NOMINATE_BATCH) {
    const batch = Uint32Array.from(rest.slice(at, at + NOMINATE_BATCH));
    const results = ports.xen.nominate(domain.domid, domain.map.gfnsOf(batch));
    const refused = batch.filter((index, place) => {
      if (results[place] !== 0) return true;
      domain.state[index] = PageState.nominated;
      report.nominated++;
      return false;
    });
    copyInto(ports, snapshot, refused, report);
    ports.serveRings();
  }
  return report;
}

function copyInto(
  ports: SnapshotPorts,
  snapshot: Snapshot,
  indexes: Uint32Array,
  report: { copied: number; holes: number },
): void {
  copyPages(ports.foreignMemory, ports.arena, snapshot.owner, snapshot.map, indexes, (index, slot) => {
    // A back end may have touched the page since it was nominated; then it has been copied.
    if (!snapshot.isLive(index)) return;
    if (slot === undefined) {
      snapshot.markZero(index);
      report.holes++;
    } else {
      snapshot.save(index, slot);
      report.copied++;
    }
  });
}
