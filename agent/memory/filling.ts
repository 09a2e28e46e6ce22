import type { Xen } from "../../hypercall/xen_api.ts";
import type { HeldDomain } from "./held_domain.ts";
import type { MemoryMap } from "./memory_map.ts";
import type { PageSource } from "./snapshot.ts";
import type { Supply } from "./supply.ts";

/** Pages that are brought in between two looks at the rings: about a millisecond. */
const FILL_BATCH = 64;
/** Host memory that filling leaves free, in pages: clones that run need some at any time. */
const RESERVED_PAGES = 32_768n;

/** A clone whose memory is being brought in though nobody asks. */
export interface Filling {
  readonly indexes: Uint32Array;
  at: number;
  readonly done: PromiseWithResolvers<void>;
}

/** Brings a few pages in. Whether there are more; it ends early when the host has no memory to spare. */
export function fillSome(xen: Xen, supply: Supply, domain: HeldDomain, filling: Filling): boolean {
  if (domain.lost !== undefined || xen.physicalInfo().freePages < RESERVED_PAGES) return false;
  supply.push(domain, filling.indexes.subarray(filling.at, filling.at + FILL_BATCH));
  filling.at += FILL_BATCH;
  return filling.at < filling.indexes.length;
}

/** For a clone that lacks nothing but zeros: it needs its parent's memory no more. */
export class Zeros implements PageSource {
  readonly id = "zeros";
  readonly map: MemoryMap;

  constructor(map: MemoryMap) {
    this.map = map;
  }

  locate(): { readonly kind: "zero"; readonly cause: "free" } {
    return { kind: "zero", cause: "free" };
  }

  retain(): void {}
  release(): void {}
}
