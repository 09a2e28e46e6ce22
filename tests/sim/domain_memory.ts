/** A domain's pages: adding, removing, mapping and counting them (common/memory.c, arch/x86/mm/p2m.c). */
import { PAGE_BYTES } from "../../hypercall/ports.ts";
import { HostCrash, no } from "./errno.ts";
import { type Frame, FramePlacer, type HostMemory } from "./frames.ts";
import { P2m, type PageEntry } from "./p2m.ts";

/** Gfns are of physical addresses of 52 bits. */
const GFN_LIMIT = 2n ** 40n;
/** The hardware domain's `memop-max-order`. */
const MAX_ORDER = 12;

const EILSEQ = -84;

export class DomainMemory {
  readonly p2m = new P2m();
  maxPages = 0;
  /** Frames that count against the limit. */
  totalPages = 0;
  pagedPages = 0;
  /** Gfns written since logging began; undefined while it is off. */
  dirty: Set<number> | undefined;
  readonly #host: HostMemory;
  readonly #onLastFrame: () => void;
  readonly #frames = new Set<Frame>();
  #placer: FramePlacer | undefined;

  /** `onLastFrame` is told when the last of the frames is freed. */
  constructor(host: HostMemory, onLastFrame: () => void) {
    this.#host = host;
    this.#onLastFrame = onLastFrame;
  }

  /** Frames that are not freed yet, whoever holds them. */
  get liveFrames(): number {
    return this.#frames.size;
  }

  /** The type that present RAM has now. */
  get ramType(): "ram_rw" | "ram_logdirty" {
    return this.dirty === undefined ? "ram_rw" : "ram_logdirty";
  }

  /** One frame of the domain's RAM, zeroed; undefined when its limit or the host's memory is reached. */
  allocate(gfn: number): Frame | undefined {
    if (this.totalPages + 1 > this.maxPages || !this.#host.take(1)) return undefined;
    this.totalPages++;
    this.#placer ??= new FramePlacer(this.maxPages);
    const frame: Frame = this.#placer.place(gfn, false, () => {
      this.totalPages--;
      this.#host.give(1);
      this.#freed(frame);
    });
    this.#frames.add(frame);
    return frame;
  }

  /** A page of Xen's heap that belongs to the domain; it does not count against its limit. */
  allocateXenHeap(): Frame | undefined {
    if (!this.#host.take(1)) return undefined;
    const frame: Frame = new FramePlacer(1).place(0, true, () => {
      this.#host.give(1);
      this.#freed(frame);
    });
    this.#frames.add(frame);
    return frame;
  }

  #freed(frame: Frame): void {
    this.#frames.delete(frame);
    if (this.#frames.size === 0) this.#onLastFrame();
  }

  /** XENMEM_populate_physmap: how many extents were made before one could not be. */
  populate(gfns: readonly bigint[], order: number): number {
    if (order > MAX_ORDER) return 0;
    const pages = 2 ** order;
    for (const [done, first] of gfns.entries()) {
      if (first >= GFN_LIMIT || Number(first) % pages !== 0) return done;
      if (!this.#addExtent(Number(first), pages)) return done;
    }
    return gfns.length;
  }

  #addExtent(first: number, pages: number): boolean {
    if (pages < 512 && !this.p2m.ensureTable(first)) return false;
    const added: Frame[] = [];
    for (let page = 0; page < pages; page++) {
      const frame = this.allocate(first + page);
      if (frame === undefined) {
        for (const given of added) given.deallocate();
        return false;
      }
      added.push(frame);
    }
    added.forEach((frame, page) => this.#plug(first + page, frame));
    return true;
  }

  /** p2m_add_page(): whatever was at the gfn is gone. A frame that was there stays allocated, and nobody can reach it. */
  #plug(gfn: number, frame: Frame): void {
    const old = this.p2m.get(gfn);
    if (old.type === "ram_paging_in" && old.frame === undefined) {
      throw new HostCrash(`a page was added over gfn 0x${gfn.toString(16)} while it was being paged in`);
    }
    if (old.type === "ram_paged") this.pagedPages--;
    // Pages that come while writes are logged are not logged themselves: the entry says ram_rw.
    this.p2m.set(gfn, "ram_rw", frame);
  }

  /** XENMEM_decrease_reservation of single pages: how many were done before one could not be. */
  decrease(gfns: readonly bigint[]): number {
    for (const [done, gfn] of gfns.entries()) {
      if (gfn >= GFN_LIMIT || this.remove(Number(gfn)) !== 0) return done;
    }
    return gfns.length;
  }

  /**
   * guest_remove_page(): 0 or -errno. A page without a frame in a paging state cannot be removed (EILSEQ, since Xen 4.14). A
   * nominated page goes like any other, and nobody is told.
   */
  remove(gfn: number): number {
    const { type, frame } = this.p2m.get(gfn);
    if (type === "hole") return no("ENOENT");
    if (frame === undefined) return EILSEQ;
    this.p2m.clear(gfn);
    frame.deallocate();
    return 0;
  }

  /** XENMEM_remove_from_physmap: 0 or -errno. The frame is only taken from the guest's view; it stays allocated. */
  removeFromPhysmap(gfn: number): number {
    if (this.p2m.get(gfn).frame === undefined) return no("ENOENT");
    this.p2m.clear(gfn);
    return 0;
  }

  /** XENMEM_add_to_physmap of a page of Xen's heap: it moves to the gfn, and what was there goes. */
  addXenHeap(gfn: number, frame: Frame): number {
    for (const [at, entry] of this.p2m.entries()) {
      if (entry.frame === frame && at !== gfn) {
        this.p2m.clear(at);
        break;
      }
    }
    const old = this.p2m.get(gfn);
    if (old.frame === frame) return 0;
    if (old.frame !== undefined) {
      this.p2m.clear(gfn);
      if (!old.frame.xenHeap) old.frame.deallocate();
    }
    if (!this.p2m.ensureTable(gfn)) return no("ENOMEM");
    this.#plug(gfn, frame);
    return 0;
  }

  /** XEN_DOMCTL_getpageframeinfo3: the type's four bits. What is missing, paged out or Xen's own is XTAB. */
  pageInfo(gfn: bigint): number {
    const XTAB = 0xf;
    if (gfn >= GFN_LIMIT) return XTAB;
    const { frame } = this.p2m.get(Number(gfn));
    return frame === undefined || frame.xenHeap ? XTAB : 0;
  }

  entryOf(gfn: bigint): PageEntry {
    return gfn < GFN_LIMIT ? this.p2m.get(Number(gfn)) : { type: "hole", frame: undefined };
  }

  /** Xen writes into the domain's page (a grant copy, an answer in guest memory). */
  write(gfn: number, frame: Frame, offset: number, bytes: Uint8Array): void {
    if (offset + bytes.byteLength > PAGE_BYTES) throw new RangeError("a write beyond the page");
    this.dirty?.add(gfn);
    frame.write(offset, bytes);
  }

  enableLogDirty(): number {
    if (this.dirty !== undefined) return no("EINVAL");
    this.dirty = new Set();
    this.#retype("ram_rw", "ram_logdirty");
    return 0;
  }

  disableLogDirty(): void {
    if (this.dirty === undefined) return;
    this.dirty = undefined;
    this.#retype("ram_logdirty", "ram_rw");
  }

  /** Forgets what was written so far, and logs again from now. */
  cleanLogDirty(): void {
    if (this.dirty === undefined) return;
    this.dirty.clear();
    this.#retype("ram_rw", "ram_logdirty");
  }

  #retype(from: "ram_rw" | "ram_logdirty", to: "ram_rw" | "ram_logdirty"): void {
    for (const [gfn, entry] of this.p2m.entries()) {
      if (entry.type === from && entry.frame?.xenHeap === false) this.p2m.set(gfn, to, entry.frame);
    }
  }

  /** Sets the paging pool to this many pages; false when the host has not enough. It never shrinks below what is used. */
  setPool(pages: number): boolean {
    const wanted = Math.max(pages, this.p2m.usedPoolPages);
    const more = wanted - this.p2m.poolPages;
    if (more > 0 && !this.#host.take(more)) return false;
    if (more < 0) this.#host.give(-more);
    this.p2m.poolPages = wanted;
    return true;
  }

  /** Takes the pool of a new domain from the host. */
  takeInitialPool(): boolean {
    return this.#host.take(this.p2m.poolPages);
  }

  /** The end of the domain: all is given up; what others hold is freed when they let go. */
  relinquish(): void {
    for (const frame of [...this.#frames]) if (frame.allocated) frame.deallocate();
    for (const [gfn] of [...this.p2m.entries()]) this.p2m.clear(gfn);
    this.#host.give(this.p2m.poolPages);
    this.p2m.poolPages = 0;
  }
}
