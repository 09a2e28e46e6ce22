/** The xenstore protocol's messages (public/io/xs_wire.h): a 16-byte header, then at most 4096 bytes. */
import { XENSTORE_PAYLOAD_MAX, XsdSockmsg } from "../abi/mod.ts";
import { XenstoreError } from "./errors.ts";

export interface Message {
  /** `XS_*`. */
  readonly type: number;
  readonly requestId: number;
  readonly transactionId: number;
  readonly payload: Uint8Array;
}

/** Throws E2BIG for a payload that the protocol does not carry. */
export function encodeMessage({ type, requestId, transactionId, payload }: Message): Uint8Array<ArrayBuffer> {
  if (payload.byteLength > XENSTORE_PAYLOAD_MAX) {
    throw new XenstoreError(`send ${payload.byteLength} bytes`, "E2BIG");
  }
  const bytes = new Uint8Array(XsdSockmsg.size + payload.byteLength);
  XsdSockmsg.encodeInto({ type, req_id: requestId, tx_id: transactionId, len: payload.byteLength }, bytes);
  bytes.set(payload, XsdSockmsg.size);
  return bytes;
}

/** Cuts a stream of bytes, in whatever chunks it comes, into messages. It never holds more than one message and one chunk. */
export class MessageReader {
  #held = new Uint8Array(0);

  /** The messages that this chunk completes. Throws EIO for a length that the protocol does not allow: the stream is lost. */
  push(chunk: Uint8Array): Message[] {
    const bytes = new Uint8Array(this.#held.byteLength + chunk.byteLength);
    bytes.set(this.#held);
    bytes.set(chunk, this.#held.byteLength);
    const messages: Message[] = [];
    let start = 0;
    while (bytes.byteLength - start >= XsdSockmsg.size) {
      const { type, req_id, tx_id, len } = XsdSockmsg.decode(bytes, start);
      if (len > XENSTORE_PAYLOAD_MAX) throw new XenstoreError(`read a message of ${len} bytes from xenstored`, "EIO");
      const end = start + XsdSockmsg.size + len;
      if (end > bytes.byteLength) break;
      const payload = bytes.slice(start + XsdSockmsg.size, end);
      messages.push({ type, requestId: req_id, transactionId: tx_id, payload });
      start = end;
    }
    this.#held = bytes.slice(start);
    return messages;
  }
}

const encoder = new TextEncoder();
const decoder = new TextDecoder();

/** Strings, each with a NUL behind it. */
export function encodeStrings(...strings: readonly string[]): Uint8Array<ArrayBuffer> {
  for (const string of strings) {
    if (string.includes("\0")) throw new XenstoreError(`send ${JSON.stringify(string)}`, "EINVAL");
  }
  return encoder.encode(strings.map((string) => `${string}\0`).join(""));
}

/** The strings of a list in which each ends with a NUL. A last one without is taken as it is. */
export function decodeStrings(bytes: Uint8Array): string[] {
  const strings = decoder.decode(bytes).split("\0");
  if (strings.at(-1) === "") strings.pop();
  return strings;
}

/** Bytes that are not UTF-8 become U+FFFD: a guest may have written them. */
export function decodeText(bytes: Uint8Array): string {
  return decoder.decode(bytes);
}

export function concatenate(...parts: readonly Uint8Array[]): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(parts.reduce((sum, part) => sum + part.byteLength, 0));
  let offset = 0;
  for (const part of parts) {
    bytes.set(part, offset);
    offset += part.byteLength;
  }
  return bytes;
}
