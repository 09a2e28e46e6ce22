/** What a domain has at each gfn, and the page tables that this takes from its paging pool. */
import type { Frame } from "./frames.ts";

/** The p2m types that this program meets (arch/x86/include/asm/p2m.h). */
export type PageType = "hole" | "ram_rw" | "ram_logdirty" | "ram_paging_out" | "ram_paged" | "ram_paging_in";

export interface PageEntry {
  readonly type: PageType;
  readonly frame: Frame | undefined;
}

const HOLE: PageEntry = { type: "hole", frame: undefined };
/** Gfns under one last-level table. */
const TABLE_GFNS = 512;
/** Tables above the last level. */
const UPPER_TABLES = 4;
/** What hap_enable() gives a new domain before the toolstack sets the size (arch/x86/mm/hap/hap.c). */
const DEFAULT_POOL_PAGES = 256;

/**
 * Gfns are plain numbers here: they are checked to be below 2^40 where they come in, so nothing is lost.
 */
export class P2m {
  readonly #entries = new Map<number, PageEntry>();
  readonly #tables = new Set<number>();
  poolPages = DEFAULT_POOL_PAGES;
  /** Highest gfn that ever had an entry; -1 for none. */
  highest = -1;

  get(gfn: number): PageEntry {
    return this.#entries.get(gfn) ?? HOLE;
  }

  set(gfn: number, type: Exclude<PageType, "hole">, frame: Frame | undefined): void {
    this.#entries.set(gfn, { type, frame });
    if (gfn > this.highest) this.highest = gfn;
  }

  clear(gfn: number): void {
    this.#entries.delete(gfn);
  }

  entries(): IterableIterator<[number, PageEntry]> {
    return this.#entries.entries();
  }

  get usedPoolPages(): number {
    return UPPER_TABLES + this.#tables.size;
  }

  /** Sees to a last-level table for the gfn; false when the pool is used up. A whole 2 MiB page needs none until it is split. */
  ensureTable(gfn: number): boolean {
    const table = Math.floor(gfn / TABLE_GFNS);
    if (this.#tables.has(table)) return true;
    if (this.usedPoolPages >= this.poolPages) return false;
    this.#tables.add(table);
    return true;
  }
}
