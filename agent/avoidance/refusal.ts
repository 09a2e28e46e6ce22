/**
 * Why the free pages of a guest could not be told. None of these is a fault of the fork: it goes on without the bitmap, and the
 * reason is counted.
 */
export const REFUSAL_REASONS = [
  /** The guest did not report a symbol that is needed. */
  "symbols",
  /** An address has no mapping in the guest's page tables. */
  "unmapped",
  /** A frame that the guest's page tables name cannot be read: no RAM, or paged out. */
  "unreadable",
  /** The BTF is damaged, too large, or of a kind that is not known. */
  "btf",
  /** The BTF is sound, but the kernel's structs are not as expected. */
  "layout",
  /** A list leads to what is not a `struct page` of the guest's RAM. */
  "foreign-pointer",
  /** A block does not lie on a multiple of its size, or is not of its list's order. */
  "block",
  /** A page is free twice: lists that cross, or a cycle. */
  "duplicate",
  /** A list's links disagree about direction. */
  "links",
  /** A list holds more or less blocks than the kernel counts. */
  "count",
  /** A node or zone contradicts itself. */
  "zone",
  /** The kernel fills free pages with a pattern and checks it: a zero page would look like corruption. */
  "poisoning",
  "page-budget",
  "time-budget",
] as const;

export type RefusalReason = typeof REFUSAL_REASONS[number];

/** Ends a walk. Thrown and caught within this folder only; callers get the reason as a result. */
export class Refusal extends Error {
  readonly reason: RefusalReason;

  constructor(reason: RefusalReason, detail: string) {
    super(detail);
    this.name = "Refusal";
    this.reason = reason;
  }
}

export interface Refused {
  readonly ok: false;
  readonly reason: RefusalReason;
  /** For the log: what was found where. */
  readonly detail: string;
}

/** Runs `work`; a {@link Refusal} becomes a result, anything else is a fault of ours and is thrown on. */
export function refusable<T>(work: () => T): T | Refused {
  try {
    return work();
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    return { ok: false, reason: error.reason, detail: error.message };
  }
}
