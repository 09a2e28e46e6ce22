/**
 * Frames of domains mapped into dom0.
 *
 * Frames that lie side by side are handed out as a view of their own bytes. JavaScript cannot alias others into one array; those
 * are mirrored: the mapping has a copy, Xen's and guests' writes go to frame and copy at once, and what the holder wrote into the
 * copy is merged, byte by byte, whenever the simulator is entered (every hypercall, mapping and guest step calls
 * {@link Mappings.settle}). So each side sees the other's writes at the latest when it next calls the simulator, which is all that
 * real memory without barriers promises.
 */
import { PAGE_BYTES } from "../../hypercall/ports.ts";
import type { Frame, Mirror } from "./frames.ts";

/** What an error page of a mirrored mapping holds: a program that reads it despite the error will not get zeros. */
const POISON = 0xa5;

export interface Mapped {
  readonly bytes: Uint8Array<ArrayBuffer>;
  /** `detach`: a mirror's bytes become unusable, as memory does that is unmapped. A view of the frames' own bytes cannot. */
  unmap(options: { readonly detach: boolean }): void;
}

export class Mappings {
  /** Frames that are mirrored and that dom0 can write. */
  readonly #contended = new Set<Frame>();

  /** Maps the frames in order; undefined is a page that has none. Takes a reference on each. */
  map(frames: readonly (Frame | undefined)[], write: boolean): Mapped {
    this.settle();
    for (const frame of frames) frame?.retain();
    const alias = aliasOf(frames);
    return alias === undefined ? this.#mirror(frames, write) : this.#alias(frames, alias, write);
  }

  /** Makes frames and their mirrors equal. */
  settle(): void {
    for (const frame of this.#contended) settleFrame(frame);
  }

  #alias(frames: readonly (Frame | undefined)[], bytes: Uint8Array<ArrayBuffer>, write: boolean): Mapped {
    if (write) {
      for (const frame of frames) {
        if (frame === undefined) continue;
        frame.writableAliases++;
        frame.touched = true;
        this.#track(frame);
      }
    }
    return {
      bytes,
      unmap: () => {
        this.settle();
        for (const frame of frames) {
          if (frame === undefined) continue;
          if (write) frame.writableAliases--;
          this.#track(frame);
          frame.release();
        }
      },
    };
  }

  #mirror(frames: readonly (Frame | undefined)[], write: boolean): Mapped {
    const bytes = new Uint8Array(frames.length * PAGE_BYTES);
    const mirrors = frames.map((frame, index): Mirror | undefined => {
      const page = bytes.subarray(index * PAGE_BYTES, (index + 1) * PAGE_BYTES);
      if (frame === undefined) {
        page.fill(POISON);
        return undefined;
      }
      page.set(frame.bytes);
      const mirror = { page, base: write ? page.slice() : undefined };
      frame.mirrors.add(mirror);
      this.#track(frame);
      return mirror;
    });
    return {
      bytes,
      unmap: ({ detach }) => {
        this.settle();
        frames.forEach((frame, index) => {
          const mirror = mirrors[index];
          if (frame === undefined || mirror === undefined) return;
          frame.mirrors.delete(mirror);
          this.#track(frame);
          frame.release();
        });
        if (detach) bytes.buffer.transfer(0);
      },
    };
  }

  #track(frame: Frame): void {
    const writable = frame.writableAliases > 0 || [...frame.mirrors].some(({ base }) => base !== undefined);
    if (frame.mirrors.size > 0 && writable) this.#contended.add(frame);
    else this.#contended.delete(frame);
  }
}

/** The bytes of frames that lie in order in one buffer, gaps included; undefined where they do not. */
function aliasOf(frames: readonly (Frame | undefined)[]): Uint8Array<ArrayBuffer> | undefined {
  const firstIndex = frames.findIndex((frame) => frame !== undefined);
  const first = frames[firstIndex];
  if (first === undefined) return undefined;
  const start = first.offset - firstIndex * PAGE_BYTES;
  const end = start + frames.length * PAGE_BYTES;
  if (start < 0 || end > first.buffer.byteLength) return undefined;
  const inOrder = frames.every((frame, index) =>
    frame === undefined || (frame.buffer === first.buffer && frame.offset === start + index * PAGE_BYTES)
  );
  return inOrder ? new Uint8Array(first.buffer, start, frames.length * PAGE_BYTES) : undefined;
}

function settleFrame(frame: Frame): void {
  const bytes = frame.bytes;
  for (const { page, base } of frame.mirrors) {
    if (base === undefined || sameBytes(page, base)) continue;
    frame.touched = true;
    for (let index = 0; index < PAGE_BYTES; index++) {
      const value = page[index];
      if (value !== undefined && value !== base[index]) bytes[index] = value;
    }
  }
  for (const { page, base } of frame.mirrors) {
    page.set(bytes);
    base?.set(bytes);
  }
}

function sameBytes(a: Uint8Array, b: Uint8Array): boolean {
  const left = new Int32Array(a.buffer, a.byteOffset, a.byteLength / 4);
  const right = new Int32Array(b.buffer, b.byteOffset, b.byteLength / 4);
  return left.every((word, index) => word === right[index]);
}
