/** Refuses a packet counter that was taken before, and one that is too old to tell (RFC 4303, section 3.4.3). */
export const REPLAY_WINDOW = 32768;

export class ReplayWindow {
  #highest = 0;
  readonly #seen = new Uint32Array(REPLAY_WINDOW / 32);

  /** Whether the counter is new. Changes nothing, since the packet may be a forgery still. */
  fresh(counter: number): boolean {
    if (counter > this.#highest) return true;
    if (this.#highest - counter >= REPLAY_WINDOW) return false;
    const bit = counter % REPLAY_WINDOW;
    return ((this.#seen[bit >>> 5] ?? 0) & (1 << (bit & 31))) === 0;
  }

  /** Takes the counter of an authenticated packet. */
  take(counter: number): void {
    if (counter > this.#highest) {
      const skipped = counter - this.#highest;
      if (skipped >= REPLAY_WINDOW) this.#seen.fill(0);
      else for (let n = this.#highest + 1; n < counter; n++) this.#clear(n % REPLAY_WINDOW);
      this.#highest = counter;
    }
    const bit = counter % REPLAY_WINDOW;
    this.#seen[bit >>> 5] = (this.#seen[bit >>> 5] ?? 0) | (1 << (bit & 31));
  }

  #clear(bit: number): void {
    this.#seen[bit >>> 5] = (this.#seen[bit >>> 5] ?? 0) & ~(1 << (bit & 31));
  }
}
