/** Which memory a clone need not fetch. */
export { ForeignGuestMemory, type GuestMemory } from "./guest_memory.ts";
export type { PagingRegisters, WalkBudget } from "./kernel_memory.ts";
export { type KernelLayout, KernelLayouts, type LayoutQuery, readLayout, type Symbols } from "./layout.ts";
export { PageSet, type RamMap } from "./page_set.ts";
export { REFUSAL_REASONS, type RefusalReason, type Refused } from "./refusal.ts";
export { defaultFrameBudget, type FreeAtFork, type FreeZone, walkFreePages, type WalkQuery } from "./walk.ts";
