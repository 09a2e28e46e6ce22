/** A first-in, first-out queue of (object slot, block index), without an allocation a block. Grows up to its bound. */
export class BlockRing {
  /** What {@link shift} took out. */
  slot = 0;
  index = 0;
  readonly #bound: number;
  #slots = new Uint16Array(256);
  #indexes = new Uint32Array(256);
  #head = 0;
  #size = 0;

  /** `bound` blocks at most; rounded up to a power of two of at least 256. */
  constructor(bound: number) {
    this.#bound = 2 ** Math.ceil(Math.log2(Math.max(256, bound)));
  }

  get size(): number {
    return this.#size;
  }

  /** False at the bound: the block was not queued. */
  push(slot: number, index: number): boolean {
    if (this.#size === this.#indexes.length && !this.#grow()) return false;
    const at = (this.#head + this.#size++) & (this.#indexes.length - 1);
    this.#slots[at] = slot;
    this.#indexes[at] = index;
    return true;
  }

  shift(): boolean {
    if (this.#size === 0) return false;
    this.slot = this.#slots[this.#head] ?? 0;
    this.index = this.#indexes[this.#head] ?? 0;
    this.#head = (this.#head + 1) & (this.#indexes.length - 1);
    this.#size--;
    return true;
  }

  #grow(): boolean {
    const length = this.#indexes.length;
    if (length >= this.#bound) return false;
    const slots = new Uint16Array(length * 2);
    const indexes = new Uint32Array(length * 2);
    for (let n = 0; n < this.#size; n++) {
      const at = (this.#head + n) & (length - 1);
      slots[n] = this.#slots[at] ?? 0;
      indexes[n] = this.#indexes[at] ?? 0;
    }
    this.#slots = slots;
    this.#indexes = indexes;
    this.#head = 0;
    return true;
  }
}
