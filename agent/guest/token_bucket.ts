/** A token bucket: `burst` at once, `perSecond` in the long run. The caller brings the time. */
export class TokenBucket {
  readonly #perSecond: number;
  readonly #burst: number;
  #tokens: number;
  #atMs: number;

  /** Full at `nowMs`. Both numbers are above zero. */
  constructor(perSecond: number, burst: number, nowMs: number) {
    if (!(perSecond > 0) || !(burst >= 1)) throw new RangeError("A token bucket needs a rate and a burst");
    this.#perSecond = perSecond;
    this.#burst = burst;
    this.#tokens = burst;
    this.#atMs = nowMs;
  }

  /** Takes a token and gives 0, or takes none and gives the milliseconds until there is one. */
  take(nowMs: number): number {
    const elapsedMs = Math.max(0, nowMs - this.#atMs);
    this.#tokens = Math.min(this.#burst, this.#tokens + (elapsedMs * this.#perSecond) / 1000);
    this.#atMs = Math.max(this.#atMs, nowMs);
    // A hair of tolerance: a caller that sleeps the time given must not find 0.9999 tokens.
    if (this.#tokens >= 1 - 1e-6) {
      this.#tokens = Math.max(0, this.#tokens - 1);
      return 0;
    }
    return Math.ceil(((1 - this.#tokens) * 1000) / this.#perSecond);
  }
}
