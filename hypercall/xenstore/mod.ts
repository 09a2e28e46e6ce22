/** Xenstore: a client, and its errors. */
export { openXenstore, type Xenstore } from "./client.ts";
export { XenstoreError, type XenstoreErrorCode } from "./errors.ts";
export type { Access, Permission, XenstoreNodes } from "./nodes.ts";
export { connectXenstored, openXenbus, XENBUS_DEVICE, XENSTORED_SOCKET, type XenstoreTransport } from "./transport.ts";
export type { WatchEvents } from "./watch_events.ts";
