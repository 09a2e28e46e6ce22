/** What a hostile guest tries. Each returns what stopped it; none throws for being stopped. */
import { XsdSockmsg } from "../../../hypercall/abi/mod.ts";
import { type GuestStore, refusalOf } from "./guest_store.ts";

const REQUEST = "data/snowflock/request";

/** Bytes that are no text into the node where requests go. */
export function writeGarbage(store: GuestStore, byteLength = 1024): string | undefined {
  const garbage = Uint8Array.from({ length: byteLength }, (_, index) => (index * 167 + 13) & 0xff);
  return refusalOf(() => store.write(REQUEST, garbage));
}

/** Many requests, one after the other, without waiting for an answer. */
export function floodRequests(store: GuestStore, requests: number): string | undefined {
  return refusalOf(() => {
    for (let index = 0; index < requests; index++) store.write(REQUEST, `flood-${index} request-ticket 1`);
  });
}

/** As many nodes as it is allowed. */
export function fillStore(store: GuestStore): string | undefined {
  return refusalOf(() => {
    for (let index = 0;; index++) store.write(`data/snowflock/fill-${index}`, "x".repeat(256));
  });
}

/** A message of 64 KiB: xenstored ends the connection. */
export function sendOversized(feed: (bytes: Uint8Array) => void): void {
  feed(XsdSockmsg.encode({ type: 11, req_id: 1, len: 65_536 }));
}
