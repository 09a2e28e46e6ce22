/** A domain's grant table (version 1), and what a foreign domain finds through it (common/grant_table.c). */
import { GNTST, GrantEntryV1, GTF } from "../../hypercall/abi/mod.ts";
import { PAGE_BYTES } from "../../hypercall/ports.ts";
import type { DomainMemory } from "./domain_memory.ts";
import type { Frame } from "./frames.ts";
import { isPaging, type Paging } from "./paging.ts";

const ENTRIES_PER_FRAME = PAGE_BYTES / GrantEntryV1.size;
/** The host's default limit. */
const DEFAULT_MAX_FRAMES = 64;

export type Granted = { readonly status: number } | {
  readonly status: 0;
  readonly frame: Frame;
  readonly gfn: number;
};

export class GrantTable {
  readonly #memory: DomainMemory;
  readonly #paging: Paging;
  readonly #frames: Frame[] = [];
  readonly #maxFrames: number;

  constructor(memory: DomainMemory, paging: Paging, maxFrames: number) {
    this.#memory = memory;
    this.#paging = paging;
    this.#maxFrames = maxFrames < 0 ? DEFAULT_MAX_FRAMES : maxFrames;
  }

  /** The table's frame, made on demand as the table grows; undefined beyond the limit or without memory. */
  frame(index: number): Frame | undefined {
    if (index >= this.#maxFrames) return undefined;
    while (this.#frames.length <= index) {
      const frame = this.#memory.allocateXenHeap();
      if (frame === undefined) return undefined;
      this.#frames.push(frame);
    }
    return this.#frames[index];
  }

  /** The guest fills in an entry of its table: domain and frame first, the flags last. */
  grant(reference: number, grantee: number, gfn: number, readOnly: boolean): void {
    const table = this.frame(Math.floor(reference / ENTRIES_PER_FRAME));
    if (table === undefined) throw new RangeError(`there is no grant reference ${reference}`);
    const flags = GTF.permit_access | (readOnly ? GTF.readonly : 0);
    const entry = GrantEntryV1.encode({ flags, domid: grantee, frame: gfn });
    table.write((reference % ENTRIES_PER_FRAME) * GrantEntryV1.size, entry);
  }

  /** What `grantee` may do with a reference. A page that is paged out is asked for, and the answer is GNTST_eagain. */
  resolve(reference: number, grantee: number, write: boolean): Granted {
    const table = this.#frames[Math.floor(reference / ENTRIES_PER_FRAME)];
    if (table === undefined) return { status: GNTST.bad_gntref };
    const { flags, domid, frame: gfn } = GrantEntryV1.decode(
      table.bytes,
      (reference % ENTRIES_PER_FRAME) * GrantEntryV1.size,
    );
    const TYPE_MASK = 3;
    if ((flags & TYPE_MASK) !== GTF.permit_access || domid !== grantee) return { status: GNTST.general_error };
    if (write && (flags & GTF.readonly) !== 0) return { status: GNTST.general_error };
    const entry = this.#memory.p2m.get(gfn);
    if (isPaging(entry.type)) {
      this.#paging.request(gfn, undefined);
      return { status: GNTST.eagain };
    }
    if (entry.frame === undefined) return { status: GNTST.general_error };
    return { status: 0, frame: entry.frame, gfn };
  }
}
