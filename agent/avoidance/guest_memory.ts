import {
  type Domid,
  type ForeignMapping,
  type ForeignMemoryPort,
  type Gfn,
  PAGE_BYTES,
} from "../../hypercall/ports.ts";

/** A guest's memory, read from outside. */
export interface GuestMemory {
  /** The 4,096 bytes of a frame, or undefined where there is nothing to read. The view stays valid as long as the memory is held. */
  read(gfn: Gfn): Uint8Array | undefined;
}

/** Frames mapped by one call: neighbours are likely to be read next, and a call costs far more than a frame. */
const BATCH_FRAMES = 64n;

export interface ForeignGuestOptions {
  /** Most frames mapped. A read that would need more finds nothing. */
  readonly maxFrames: number;
  /**
   * For a guest that may have paged-out frames (a clone): whether a frame is there. The others are not mapped, for to try
   * would call for them like an access of the guest.
   */
  readonly isPresent?: (gfn: Gfn) => boolean;
}

/**
 * A guest's memory through foreign mappings, which stay until it is disposed of. They show the guest's memory as it is at each read.
 *
 * A mapped frame has a reference held on it, so that nominating it for paging fails with EBUSY: dispose of this first.
 */
export class ForeignGuestMemory implements GuestMemory, Disposable {
  readonly #port: ForeignMemoryPort;
  readonly #domid: Domid;
  readonly #options: ForeignGuestOptions;
  readonly #mappings: ForeignMapping[] = [];
  /** By frame its bytes, or undefined where it was found to have none. */
  readonly #frames = new Map<Gfn, Uint8Array | undefined>();
  #mapped = 0;

  constructor(port: ForeignMemoryPort, domid: Domid, options: ForeignGuestOptions) {
    this.#port = port;
    this.#domid = domid;
    this.#options = options;
  }

  /** Frames that mappings take up. */
  get mappedFrames(): number {
    return this.#mapped;
  }

  read(gfn: Gfn): Uint8Array | undefined {
    if (!this.#frames.has(gfn)) this.#map(gfn);
    return this.#frames.get(gfn);
  }

  [Symbol.dispose](): void {
    this.#frames.clear();
    for (const mapping of this.#mappings.splice(0)) mapping[Symbol.dispose]();
  }

  /** Maps the batch of frames around `gfn`. */
  #map(gfn: Gfn): void {
    const { isPresent, maxFrames } = this.#options;
    const first = gfn - gfn % BATCH_FRAMES;
    const wanted: Gfn[] = [];
    for (let at = first; at < first + BATCH_FRAMES; at++) {
      const frame = at as Gfn;
      if (!this.#frames.has(frame) && (isPresent === undefined || isPresent(frame))) wanted.push(frame);
    }
    if (!wanted.includes(gfn) || this.#mapped + wanted.length > maxFrames) return;
    const mapping = this.#port.map(this.#domid, BigUint64Array.from(wanted), { write: false });
    this.#mappings.push(mapping);
    this.#mapped += wanted.length;
    wanted.forEach((frame, at) => {
      const bytes = mapping.errors[at] === 0
        ? mapping.bytes.subarray(at * PAGE_BYTES, (at + 1) * PAGE_BYTES)
        : undefined;
      this.#frames.set(frame, bytes);
    });
  }
}
