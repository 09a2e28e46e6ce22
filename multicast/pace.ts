/**
 * How fast a family's stream is sent. A token bucket whose rate follows the loss that receivers report, averaged with the packets
 * each has heard as its weight. More loss than the network's own cuts the rate; if cuts leave the loss where it was, it is the
 * network's own, and the rate comes back. Pure: the time is an argument.
 */
export interface PaceOptions {
  /** Bytes a second, all of them. */
  readonly initialRate: number;
  readonly minRate: number;
  readonly maxRate: number;
}

export const DEFAULT_PACE: PaceOptions = { initialRate: 60e6, minRate: 250e3, maxRate: 1.25e9 };

const EPOCH_MS = 10;
/** An epoch waits for as many packets, that a rate of loss means something, but not longer than {@link EPOCH_MAX_MS}. */
const EPOCH_PACKETS = 400;
const EPOCH_MAX_MS = 100;
const CUT = 0.75;
/** Cuts after which the loss is judged. */
const JUDGED_CUTS = 2;
/** Never taken for the network's own: above it something else is wrong. */
const MAX_OWN_LOSS = 0.3;

export class Pace {
  /** Bytes a second. */
  rate: number;
  /** The share of packets that the network loses at any rate. */
  ownLoss = 0;
  /** The reported loss of the last epoch. */
  loss = 0;
  cuts = 0;
  readonly #options: PaceOptions;
  #tokens: number;
  #refilledMs: number | undefined;
  #epochMs = 0;
  #lost = 0;
  #heard = 0;
  #spent = 0;
  #starting = true;
  #hold = 0;
  #series = 0;
  #rateBefore = 0;
  #lossBefore = 0;

  constructor(options: PaceOptions) {
    this.#options = options;
    this.rate = options.initialRate;
    this.#tokens = this.#burst();
  }

  /** Whether something may be sent now. */
  ready(nowMs: number): boolean {
    if (this.#refilledMs !== undefined) {
      this.#tokens = Math.min(this.#burst(), this.#tokens + (nowMs - this.#refilledMs) * this.rate / 1000);
    }
    this.#refilledMs = nowMs;
    return this.#tokens > 0;
  }

  /** Milliseconds until something may be sent. */
  waitMs(): number {
    return this.#tokens > 0 ? 0 : -this.#tokens * 1000 / this.rate;
  }

  spend(byteLength: number): void {
    this.#tokens -= byteLength;
    this.#spent += byteLength;
  }

  /** A receiver has heard `heard` more packets of the stream, and misses `lost` more. */
  report(heard: number, lost: number, nowMs: number): void {
    this.#heard += heard;
    this.#lost += lost;
    const packets = this.#heard + this.#lost;
    const elapsedMs = nowMs - this.#epochMs;
    if (elapsedMs < EPOCH_MS || packets === 0 || (packets < EPOCH_PACKETS && elapsedMs < EPOCH_MAX_MS)) return;
    this.loss = this.#lost / packets;
    const used = this.#spent > this.rate * Math.min(elapsedMs, EPOCH_MAX_MS) / 1000 / 2;
    this.#epochMs = nowMs;
    this.#heard = this.#lost = this.#spent = 0;
    // What is reported right after a cut was sent before it.
    if (this.#hold > 0) this.#hold--;
    else if (this.loss > this.ownLoss * 1.3 + 0.006) this.#tooMuch();
    else this.#fine(used);
    this.rate = Math.min(this.#options.maxRate, Math.max(this.#options.minRate, this.rate));
  }

  #burst(): number {
    return Math.max(32 * 1024, this.rate * 0.003);
  }

  #fine(used: boolean): void {
    this.#series = 0;
    this.ownLoss += (Math.min(this.loss, this.ownLoss) - this.ownLoss) * 0.05;
    if (used) this.rate *= this.#starting ? 2 : 1.06;
  }

  #tooMuch(): void {
    if (this.#series === 0) {
      this.#rateBefore = this.rate;
      this.#lossBefore = this.loss;
    } else if (this.#series >= JUDGED_CUTS && this.loss < MAX_OWN_LOSS) {
      // A queue that overflows would lose this much at the rate of now; loss halfway or nearer to what it was is not a queue's.
      const overflow = Math.max(0, 1 - (1 - this.#lossBefore) * this.#rateBefore / this.rate);
      if (this.loss > (this.#lossBefore + overflow) / 2) {
        this.ownLoss = this.loss;
        this.rate = this.#rateBefore;
        this.#series = 0;
        return;
      }
      this.#starting = false;
    }
    this.#series++;
    this.cuts++;
    this.#hold = 1;
    this.rate *= CUT;
  }
}
