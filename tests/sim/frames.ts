/** Machine frames: who holds them, and when they go back to the host's free memory. */
import { PAGE_BYTES } from "../../hypercall/ports.ts";

/** Frames of one host, by count. */
export class HostMemory {
  #free: number;

  constructor(readonly totalPages: number) {
    this.#free = totalPages;
  }

  get freePages(): number {
    return this.#free;
  }

  take(pages: number): boolean {
    if (pages > this.#free) return false;
    this.#free -= pages;
    return true;
  }

  give(pages: number): void {
    this.#free += pages;
    if (this.#free > this.totalPages) throw new Error("the simulator freed more pages than the host has");
  }
}

/** A copy of a frame in a mapping that could not alias it; `base` is what both held when they were settled last. */
export interface Mirror {
  readonly page: Uint8Array;
  /** Undefined in a read-only mapping. */
  readonly base: Uint8Array | undefined;
}

/** One machine frame. It lives while its domain has it allocated or anybody holds a reference. */
export class Frame {
  /** References beyond the domain's own: foreign and grant mappings, vcpu_info, the vm_event ring. */
  references = 0;
  allocated = true;
  writableAliases = 0;
  readonly mirrors = new Set<Mirror>();
  /** Whether it may hold anything but zeros. */
  touched = false;
  readonly #onFree: (frame: Frame) => void;

  constructor(
    readonly buffer: ArrayBuffer,
    readonly offset: number,
    /** A page of Xen's own heap (shared_info, grant table): never pageable, and no page type for the toolstack. */
    readonly xenHeap: boolean,
    onFree: (frame: Frame) => void,
  ) {
    this.#onFree = onFree;
  }

  /** To read. Writes go through {@link write}, which keeps mirrors true. */
  get bytes(): Uint8Array<ArrayBuffer> {
    return new Uint8Array(this.buffer, this.offset, PAGE_BYTES);
  }

  write(offset: number, bytes: Uint8Array): void {
    if (offset < 0 || offset + bytes.byteLength > PAGE_BYTES) throw new RangeError("a write beyond the page");
    this.touched = true;
    this.bytes.set(bytes, offset);
    for (const { page, base } of this.mirrors) {
      page.set(bytes, offset);
      base?.set(bytes, offset);
    }
  }

  retain(): void {
    this.references++;
  }

  release(): void {
    if (this.references <= 0) throw new Error("the simulator dropped a reference twice");
    this.references--;
    this.#freeIfUnused();
  }

  /** The domain gives the frame up; it is freed once the last reference goes. */
  deallocate(): void {
    if (!this.allocated) throw new Error("the simulator freed a frame twice");
    this.allocated = false;
    this.#freeIfUnused();
  }

  #freeIfUnused(): void {
    if (!this.allocated && this.references === 0) this.#onFree(this);
  }
}

/** Gfns in a window, where the domain's limit says nothing. */
const WINDOW_PAGES = 512;
/** The first window reaches from gfn 0 as far as the domain's memory limit, at most this far. */
const FIRST_WINDOW_MAX_PAGES = 32_768;

interface Window {
  readonly buffer: ArrayBuffer;
  readonly used: Uint8Array;
}

/**
 * Places a domain's frames so that neighbouring gfns get neighbouring bytes of one buffer: then a mapping of them is a plain
 * view, as live as real memory. A frame whose place is still held (a page given back while mapped) gets a buffer of its own.
 */
export class FramePlacer {
  readonly #windows = new Map<number, Window>();
  readonly #firstPages: number;

  constructor(maxPages: number) {
    const wanted = Math.ceil(Math.max(maxPages, 1) / WINDOW_PAGES) * WINDOW_PAGES;
    this.#firstPages = Math.min(wanted, FIRST_WINDOW_MAX_PAGES);
  }

  /** `onFree` runs after the frame's bytes were scrubbed and its place is free again. */
  place(gfn: number, xenHeap: boolean, onFree: () => void): Frame {
    const first = gfn < this.#firstPages;
    const key = first ? 0 : Math.floor(gfn / WINDOW_PAGES);
    const pages = first ? this.#firstPages : WINDOW_PAGES;
    const slot = first ? gfn : gfn % WINDOW_PAGES;
    const window = this.#window(key, pages);
    if (window.used[slot] === 1) return new Frame(new ArrayBuffer(PAGE_BYTES), 0, xenHeap, onFree);
    window.used[slot] = 1;
    return new Frame(window.buffer, slot * PAGE_BYTES, xenHeap, (frame) => {
      if (frame.touched) frame.bytes.fill(0);
      window.used[slot] = 0;
      onFree();
    });
  }

  #window(key: number, pages: number): Window {
    let window = this.#windows.get(key);
    if (window === undefined) {
      window = { buffer: new ArrayBuffer(pages * PAGE_BYTES), used: new Uint8Array(pages) };
      this.#windows.set(key, window);
    }
    return window;
  }
}
