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
/** An epoch waits for as many packets, that a share of them means something; fewer do after a while, and any in the end. */
const EPOCH_PACKETS = [[100, 400], [1000, 100], [Infinity, 1]] as const;
const CUT = 0.75;
/** Loss is judged by what so many cuts changed. */
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
  /** Rate and loss before each of the last cuts, since the loss was fine. */
  #cutsFrom: { readonly rate: number; readonly loss: number }[] = [];

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
    if (elapsedMs < EPOCH_MS || packets < (EPOCH_PACKETS.find(([ms]) => elapsedMs < ms)?.[1] ?? 1)) return;
    this.loss = this.#lost / packets;
    const used = this.#spent > this.rate * Math.min(elapsedMs, 100) / 1000 / 2;
    this.#epochMs = nowMs;
    this.#heard = this.#lost = this.#spent = 0;
    // What is reported right after a cut was sent before it.
    if (this.#hold > 0) this.#hold--;
    else if (this.loss > this.#expected(packets)) this.#tooMuch();
    else this.#fine(used);
    this.rate = Math.min(this.#options.maxRate, Math.max(this.#options.minRate, this.rate));
  }

  #burst(): number {
    return Math.max(32 * 1024, this.rate * 0.003);
  }

  /** The loss that is the network's own, and what chance adds to it among so many packets (two standard deviations). */
  #expected(packets: number): number {
    return this.ownLoss * 1.2 + 0.004 + 2 * Math.sqrt(Math.max(this.ownLoss, 0.002) / packets);
  }

  #fine(used: boolean): void {
    if (this.#cutsFrom.length > 0) {
      // After a cut no queue overflows: what is lost is the network's own.
      this.ownLoss += (this.loss - this.ownLoss) * 0.3;
      this.#cutsFrom = [];
    } else this.ownLoss += (Math.min(this.loss, this.ownLoss) - this.ownLoss) * 0.02;
    if (used) this.rate *= this.#starting ? 2 : 1.03;
  }

  #tooMuch(): void {
    const earlier = this.#cutsFrom.at(-JUDGED_CUTS);
    if (earlier !== undefined && this.loss < MAX_OWN_LOSS) {
      // A queue that overflows would lose this much at the rate of now; loss halfway or nearer to what it was is not a queue's.
      const overflow = Math.max(0, 1 - (1 - earlier.loss) * earlier.rate / this.rate);
      if (this.loss > (earlier.loss + overflow) / 2) {
        this.ownLoss = this.loss;
        this.rate = earlier.rate;
        this.#cutsFrom = [];
        return;
      }
      this.#starting = false;
    }
    this.#cutsFrom = [...this.#cutsFrom.slice(1 - JUDGED_CUTS), { rate: this.rate, loss: this.loss }];
    this.cuts++;
    this.#hold = 1;
    this.rate *= CUT;
  }
}
