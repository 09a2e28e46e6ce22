import type { Address, Domid, Gfn } from "../../hypercall/ports.ts";
import type { MemoryMap } from "./memory_map.ts";
import type { PageArena, Slot } from "./page_arena.ts";

/** Where a page of a snapshot is to be had. */
export type Located =
  | { readonly kind: "memory"; readonly address: Address; readonly bytes: Uint8Array }
  | { readonly kind: "zero"; readonly cause: "zero" | "free" }
  | { readonly kind: "frame"; readonly domid: Domid; readonly gfn: Gfn }
  | { readonly kind: "elsewhere"; readonly source: PageSource }
  | { readonly kind: "gone"; readonly reason: string };

/** The memory of a machine at a fork, from which clones' absent pages come. Counted: the last user's `release` ends it. */
export interface PageSource {
  readonly id: string;
  readonly map: MemoryMap;
  locate(index: number): Located;
  retain(): void;
  release(): void;
}

/** A page still is as it was at the fork, in the parent's own frame, which a first touch will report. */
const LIVE = -1;
/** There was no page: zeros. */
const ZERO = -2;
/** The parent did not have the page itself: its own source has it. */
const INHERITED = -3;
/** The parent's kernel held it free: whoever touches it first does not care for its content. */
const FREE = -4;

/**
 * A parent's memory at one fork, on the parent's host. A page's content is the copy if one was saved, the ancestor's if the
 * page was absent in this (cloned) parent, else the parent's own frame.
 */
export class Snapshot implements PageSource {
  readonly id: string;
  readonly map: MemoryMap;
  readonly owner: Domid;
  /** Called when the last user has left. */
  ended: () => void = () => {};
  readonly #arena: PageArena;
  readonly #places: Int32Array;
  #ancestor: PageSource | undefined;
  #broken: string | undefined;
  #users = 1;
  #saved = 0;

  constructor(id: string, owner: Domid, map: MemoryMap, arena: PageArena) {
    this.id = id;
    this.owner = owner;
    this.map = map;
    this.#arena = arena;
    this.#places = new Int32Array(map.pages).fill(LIVE);
  }

  /** Copies that this snapshot holds. */
  get saved(): number {
    return this.#saved;
  }

  isLive(index: number): boolean {
    return this.#places[index] === LIVE;
  }

  /** The page's content is the copy in `slot`, of which this snapshot becomes a user. */
  save(index: number, slot: Slot): void {
    if (!this.isLive(index)) throw new RangeError(`page ${index} has its content already`);
    this.#arena.retain(slot);
    this.#places[index] = slot;
    this.#saved++;
  }

  /** The same for a page that came from the ancestor. */
  adopt(index: number, slot: Slot): void {
    if (this.#places[index] !== INHERITED) return;
    this.#arena.retain(slot);
    this.#places[index] = slot;
    this.#saved++;
  }

  markZero(index: number): void {
    this.#places[index] = ZERO;
  }

  markFree(index: number): void {
    this.#places[index] = FREE;
  }

  /** The page was absent at the fork: `ancestor` has it, and is kept until this snapshot ends. */
  markInherited(index: number, ancestor: PageSource): void {
    if (this.#ancestor === undefined) {
      ancestor.retain();
      this.#ancestor = ancestor;
    }
    this.#places[index] = INHERITED;
  }

  /** Pages that only the parent's own frames have. */
  liveIndexes(): Uint32Array {
    const live: number[] = [];
    this.#places.forEach((place, index) => {
      if (place === LIVE) live.push(index);
    });
    return Uint32Array.from(live);
  }

  /** Content of live pages is lost: clones that ask for one learn the reason. */
  break(reason: string): void {
    this.#broken ??= reason;
  }

  locate(index: number): Located {
    const place = this.#places[index];
    if (place === undefined) return { kind: "gone", reason: `page ${index} is beyond the snapshot` };
    if (place >= 0) {
      const slot = place as Slot;
      return { kind: "memory", address: this.#arena.address(slot), bytes: this.#arena.bytes(slot) };
    }
    if (place === ZERO) return { kind: "zero", cause: "zero" };
    if (place === FREE) return { kind: "zero", cause: "free" };
    if (place === INHERITED) {
      return this.#ancestor?.locate(index) ?? { kind: "gone", reason: "the snapshot's ancestor has ended" };
    }
    if (this.#broken !== undefined) return { kind: "gone", reason: this.#broken };
    return { kind: "frame", domid: this.owner, gfn: this.map.gfnAt(index) };
  }

  retain(): void {
    if (this.#users === 0) throw new Error(`snapshot ${this.id} has ended`);
    this.#users++;
  }

  release(): void {
    if (this.#users === 0) throw new Error(`snapshot ${this.id} has ended`);
    if (--this.#users > 0) return;
    for (const place of this.#places) if (place >= 0) this.#arena.release(place as Slot);
    this.#places.fill(ZERO);
    this.#ancestor?.release();
    this.#ancestor = undefined;
    this.ended();
  }
}
