import type { Calls } from "../../hypercall/thread_calls.ts";
import type { MemoryService } from "./service.ts";

/** Names of the methods that the main thread calls on the memory thread. */
export const MEMORY_METHODS = [
  "openDomain",
  "watchSuspend",
  "unwatchSuspend",
  "takeSnapshot",
  "attachSource",
  "releaseSnapshot",
  "push",
  "fill",
  "serveSnapshot",
  "openRemoteSnapshot",
  "snapshotLost",
  "closeDomain",
  "released",
  "releaseDomain",
  "takeOver",
  "report",
  "nextEvents",
] as const satisfies readonly (keyof MemoryService)[];

/** The memory thread, as the main thread sees it. */
export type MemoryCalls = Calls<Pick<MemoryService, typeof MEMORY_METHODS[number]>>;
