/** Sealing by `node:crypto`: needs no FFI, and copies. */
import { createCipheriv, createDecipheriv } from "node:crypto";
import type { Packet, Sealer } from "./ports.ts";
import { HEADER_BYTES, NONCE_OFFSET, TAG_BYTES } from "./protocol.ts";

export function nodeSealer(key: Uint8Array): Sealer {
  if (key.length !== 32) throw new RangeError(`A key of ${key.length} bytes, not 32`);
  const secret = Uint8Array.from(key);
  return {
    seal(packet: Packet): void {
      const { bytes, length } = packet;
      const cipher = createCipheriv("aes-256-gcm", secret, bytes.subarray(NONCE_OFFSET, HEADER_BYTES));
      cipher.setAAD(bytes.subarray(0, HEADER_BYTES));
      bytes.set(cipher.update(bytes.subarray(HEADER_BYTES, length)), HEADER_BYTES);
      cipher.final();
      bytes.set(cipher.getAuthTag(), length);
      packet.length = length + TAG_BYTES;
    },
    open(packet: Packet): boolean {
      const { bytes } = packet;
      const end = packet.length - TAG_BYTES;
      if (end < HEADER_BYTES) return false;
      const cipher = createDecipheriv("aes-256-gcm", secret, bytes.subarray(NONCE_OFFSET, HEADER_BYTES));
      cipher.setAAD(bytes.subarray(0, HEADER_BYTES));
      cipher.setAuthTag(bytes.subarray(end, end + TAG_BYTES));
      const clear = cipher.update(bytes.subarray(HEADER_BYTES, end));
      try {
        cipher.final();
      } catch {
        // The one reason for which it throws: the tag is another.
        return false;
      }
      bytes.set(clear, HEADER_BYTES);
      packet.length = end;
      return true;
    },
    [Symbol.dispose](): void {
      secret.fill(0);
    },
  };
}
