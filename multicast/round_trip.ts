/** Smoothed round trip and the timeout that follows from it (RFC 6298). Pure. */
export class RoundTrip {
  /** The shortest one seen; Infinity before the first. */
  leastMs = Infinity;
  readonly #initialMs: number;
  readonly #minMs: number;
  readonly #maxMs: number;
  #smoothMs: number | undefined;
  #varianceMs = 0;

  constructor(options: { readonly initialMs: number; readonly minMs: number; readonly maxMs: number }) {
    this.#initialMs = options.initialMs;
    this.#minMs = options.minMs;
    this.#maxMs = options.maxMs;
  }

  /** Of a request that was sent once (Karn): of a repeated one it is not known which was answered. */
  sample(tripMs: number): void {
    this.leastMs = Math.min(this.leastMs, tripMs);
    if (this.#smoothMs === undefined) {
      this.#smoothMs = tripMs;
      this.#varianceMs = tripMs / 2;
      return;
    }
    this.#varianceMs += (Math.abs(tripMs - this.#smoothMs) - this.#varianceMs) / 4;
    this.#smoothMs += (tripMs - this.#smoothMs) / 8;
  }

  /** A repeated request was answered so long after the first asking: the trip took no more. */
  atMost(tripMs: number): void {
    const leastMs = this.leastMs;
    this.sample(Math.min(tripMs, 2 * this.timeoutMs()));
    this.leastMs = leastMs;
  }

  timeoutMs(): number {
    const ms = this.#smoothMs === undefined ? this.#initialMs : this.#smoothMs + 4 * this.#varianceMs;
    return Math.min(this.#maxMs, Math.max(this.#minMs, ms));
  }
}
