/** Blocks as fewer packets. Compression is used only where it saves one. */
import { deflateRawSync, inflateRawSync, zstdCompressSync, zstdDecompressSync } from "node:zlib";
import { BLOCK_BYTES, Codec } from "./protocol.ts";

export type Compression = "none" | "deflate" | "zstd";

export interface Encoded {
  codec: number;
  fragments: number;
  bytes: Uint8Array;
}

/** Encodes a block for packets that take `fragmentBytes` of it. The same block gives the same bytes every time. */
export function encodeBlock(block: Uint8Array, fragmentBytes: number, compression: Compression): Encoded {
  const fragments = Math.ceil(block.length / fragmentBytes);
  if (compression !== "none") {
    const bytes = compression === "deflate" ? deflateRawSync(block, { level: 1 }) : zstdCompressSync(block);
    const fewer = Math.ceil(bytes.length / fragmentBytes);
    if (fewer < fragments) {
      return { codec: compression === "deflate" ? Codec.Deflate : Codec.Zstd, fragments: fewer, bytes };
    }
  }
  return { codec: Codec.Raw, fragments, bytes: block };
}

/** The block; undefined unless `bytes` give one of exactly 4096 bytes. */
export function decodeBlock(codec: number, bytes: Uint8Array): Uint8Array | undefined {
  try {
    const options = { maxOutputLength: BLOCK_BYTES };
    const block = codec === Codec.Deflate ? inflateRawSync(bytes, options) : zstdDecompressSync(bytes, options);
    return block.length === BLOCK_BYTES ? block : undefined;
  } catch {
    // Whatever zlib dislikes is a bad block: the caller counts it.
    return undefined;
  }
}

/** Whether all bytes are zero. */
export function isZero(block: Uint8Array): boolean {
  if (block.byteOffset % 4 !== 0 || block.length % 4 !== 0) return block.every((byte) => byte === 0);
  const words = new Uint32Array(block.buffer, block.byteOffset, block.length / 4);
  for (let n = 0; n < words.length; n++) if (words[n] !== 0) return false;
  return true;
}
