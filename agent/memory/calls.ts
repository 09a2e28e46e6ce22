import type { MemoryService } from "./service.ts";

/** Methods of an object on another thread: each takes plain data and answers by a promise. */
export type Called<T> = {
  readonly [K in keyof T]: T[K] extends (...args: infer A) => infer R ? (...args: A) => Promise<Awaited<R>> : never;
};

/** Names of the methods that the main thread calls on the memory thread. */
export const MEMORY_METHODS = [
  "openDomain",
  "watchSuspend",
  "unwatchSuspend",
  "takeSnapshot",
  "attachSource",
  "releaseSnapshot",
  "push",
  "closeDomain",
  "released",
  "releaseDomain",
  "takeOver",
  "report",
  "nextEvents",
] as const satisfies readonly (keyof MemoryService)[];

/** The memory thread, as the main thread sees it. */
export type MemoryCalls = Called<Pick<MemoryService, typeof MEMORY_METHODS[number]>>;
