import type { MemoryMap } from "./memory_map.ts";
import type { Located, PageSource } from "./snapshot.ts";

/** A snapshot that another host holds. Its pages are asked for by number, except those that were free at the fork. */
export class RemoteSnapshot implements PageSource {
  readonly id: string;
  readonly map: MemoryMap;
  /** Called when the last user has left. */
  ended: () => void = () => {};
  readonly #free: Uint8Array;
  #unreachable: string | undefined;
  #users = 1;

  constructor(id: string, map: MemoryMap, free: Uint32Array) {
    this.id = id;
    this.map = map;
    this.#free = new Uint8Array(map.pages);
    for (const index of free) this.#free[index] = 1;
  }

  /** Its pages cannot be had any more. */
  break(reason: string): void {
    this.#unreachable ??= reason;
  }

  get unreachable(): string | undefined {
    return this.#unreachable;
  }

  locate(index: number): Located {
    if (this.#free[index] === 1) return { kind: "zero", cause: "free" };
    if (this.#unreachable !== undefined) return { kind: "gone", reason: this.#unreachable };
    return { kind: "elsewhere", source: this };
  }

  retain(): void {
    if (this.#users === 0) throw new Error(`snapshot ${this.id} has ended`);
    this.#users++;
  }

  release(): void {
    if (this.#users === 0) throw new Error(`snapshot ${this.id} has ended`);
    if (--this.#users === 0) this.ended();
  }
}
