import { deepEqual, equal, throws } from "node:assert/strict";
import { XS } from "../abi/mod.ts";
import { XenstoreError } from "./errors.ts";
import { decodeStrings, encodeMessage, encodeStrings, type Message, MessageReader } from "./wire.ts";

const READ: Message = { type: XS.READ, requestId: 7, transactionId: 9, payload: encodeStrings("/local/domain/1/name") };
const EMPTY: Message = { type: XS.READ, requestId: 8, transactionId: 0, payload: new Uint8Array(0) };

Deno.test("a message is a header of four little-endian words and its payload", () => {
  const bytes = encodeMessage({ ...READ, payload: encodeStrings("ab") });
  deepEqual([...bytes], [2, 0, 0, 0, 7, 0, 0, 0, 9, 0, 0, 0, 3, 0, 0, 0, 97, 98, 0]);
});

Deno.test("messages come out whole however the stream is cut", () => {
  const stream = new Uint8Array([...encodeMessage(READ), ...encodeMessage(EMPTY), ...encodeMessage(READ)]);
  for (let size = 1; size <= stream.byteLength; size++) {
    const reader = new MessageReader();
    const messages: Message[] = [];
    for (let start = 0; start < stream.byteLength; start += size) {
      messages.push(...reader.push(stream.subarray(start, start + size)));
    }
    deepEqual(messages, [READ, EMPTY, READ]);
  }
});

Deno.test("lengths that the protocol does not allow are refused, both ways", () => {
  throws(() => encodeMessage({ ...READ, payload: new Uint8Array(4097) }), { code: "E2BIG" });
  const wild = encodeMessage(EMPTY);
  new DataView(wild.buffer).setUint32(12, 0xffff_ffff, true);
  throws(() => new MessageReader().push(wild), { code: "EIO" });
});

Deno.test("a NUL cannot be smuggled into a string", () => {
  throws(() => encodeStrings("a\0b"), XenstoreError);
});

Deno.test("strings of any bytes decode to something", () => {
  deepEqual(decodeStrings(new Uint8Array(0)), []);
  deepEqual(decodeStrings(Uint8Array.of(97, 0, 0, 98, 0)), ["a", "", "b"]);
  deepEqual(decodeStrings(Uint8Array.of(97, 0, 98)), ["a", "b"]);
  equal(decodeStrings(Uint8Array.of(0xff, 0))[0], "\ufffd");
});
