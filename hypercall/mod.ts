/**
 * Xen for the rest of the program: ports to the machine, the typed calls over them, the paging ring, xenstore, calls between
 * threads. The system calls themselves are in `native/mod.ts`, imported by main.ts and worker entry files alone.
 */
export * from "./errors.ts";
export * from "./ports.ts";
export { openXen } from "./xen.ts";
export type * from "./xen_api.ts";
export { type PagingRequest, PagingRing, RingError } from "./ring.ts";
export * from "./xenstore/mod.ts";
export {
  CallQueue,
  type CallQueueOptions,
  type Calls,
  CallServer,
  type Endpoint,
  ThreadCallError,
  withTransfer,
  workerEndpoint,
} from "./thread_calls.ts";
export * as abi from "./abi/mod.ts";
