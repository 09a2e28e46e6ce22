/** Pages that tell whether they are what was written: every word follows from the page's number, a seed and a round. */
import { PAGE_BYTES } from "../../../hypercall/ports.ts";

const HEADER_WORDS = 4;
const WORDS = PAGE_BYTES / 4;

export interface PatternPage {
  readonly seed: number;
  readonly round: number;
}

/** `seed` from 1: a page of zeros is one that nobody wrote. */
export function patternPage(gfn: number, { seed, round }: PatternPage): Uint8Array<ArrayBuffer> {
  const words = new Uint32Array(WORDS);
  words[0] = seed;
  words[1] = round;
  words[2] = gfn >>> 0;
  words[3] = Math.floor(gfn / 2 ** 32);
  let state = (Math.imul(seed, 0x9e3779b1) ^ Math.imul(round, 0x85ebca6b) ^ Math.imul(gfn >>> 0, 0xc2b2ae35)) >>> 0 ||
    1;
  for (let index = HEADER_WORDS; index < WORDS; index++) {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    words[index] = state >>> 0;
  }
  return new Uint8Array(words.buffer);
}

/** What a page holds: a pattern of this gfn, nothing but zeros, or something that was never written there. */
export function inspectPage(gfn: number, bytes: Uint8Array): PatternPage | "zero" | "wrong" {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const seed = view.getUint32(0, true);
  if (seed === 0) return bytes.every((byte) => byte === 0) ? "zero" : "wrong";
  const found = { seed, round: view.getUint32(4, true) };
  const expected = patternPage(gfn, found);
  return bytes.every((byte, index) => byte === expected[index]) ? found : "wrong";
}
