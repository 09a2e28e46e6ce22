/**
 * The wanting side of one object: which blocks to ask for now, and again. A state machine that changes in place and is
 * deterministic: events come in by methods, with the time as an argument; `poll` gives the requests to send.
 *
 * Blocks are asked for within a window. The server answers in the order of the asking, so when a later block arrives, an earlier
 * one that has not was lost, and is asked for again without waiting for a timer; so is what is missing when the server
 * says that its stream has ended. Timers are the last resort.
 */
import { BlockRing } from "./block_ring.ts";
import { AT, BlockStates, State } from "./block_states.ts";
import type { Range } from "./codec.ts";
import { ALL_FRAGMENTS, MAX_RANGE_BLOCKS } from "./protocol.ts";
import { RoundTrip } from "./round_trip.ts";
import { UrgentBlocks } from "./urgent_blocks.ts";

export interface ReceiverOptions {
  /** Background blocks asked for and not here yet. They must fit into the socket's receive buffer. */
  readonly window: number;
  /** Urgent blocks at a time; more are treated as background blocks. */
  readonly maxUrgent: number;
  /** Silence of the server, with blocks asked for, that is reported; then twice that, and so on. */
  readonly stallMs: number;
  /** At so few blocks left, what was lost is answered by unicast. */
  readonly endGame: number;
}

export const DEFAULT_RECEIVER: ReceiverOptions = { window: 1024, maxUrgent: 512, stallMs: 5000, endGame: 16 };

/** Later blocks that must have arrived before an earlier one counts as lost: reordering of the network. */
const REORDER_BLOCKS = 12;
/** Blocks of one background request; the window opens in such steps. */
const STEP = 128;
/** Attempts from which the answer is asked for by unicast. */
const UNICAST_ATTEMPT = 2;
const MAX_BACKOFF = 64;

/** A request to send. */
export interface Ask {
  urgent: boolean;
  unicast: boolean;
  ranges: Range[];
}

export interface ReceiverStats {
  requested: number;
  delivered: number;
  overheard: number;
  lossesSeen: number;
  timeouts: number;
}

export class Receiver {
  readonly stats: ReceiverStats = {
    requested: 0,
    delivered: 0,
    overheard: 0,
    lossesSeen: 0,
    timeouts: 0,
  };
  readonly trip = new RoundTrip({ initialMs: 200, minMs: 60, maxMs: 2000 });
  readonly blocks: number;
  readonly #options: ReceiverOptions;
  readonly #missing: (index: number) => number;
  readonly #states = new BlockStates();
  readonly #wants: BlockRing;
  /** Blocks asked for, in order. Entries of blocks that came are skipped. */
  #asked: { index: number; order: number; sentMs: number }[] = [];
  #askedHead = 0;
  readonly #urgent = new UrgentBlocks();
  #again: number[] = [];
  #outstanding = 0;
  #wanted = 0;
  #lostBlocks = 0;
  #order = 0;
  #backoff = 1;
  #heardMs = 0;
  /** When a block that had been asked for came last. */
  #progressMs = 0;
  /** The silence that is reported next. */
  #reportMs: number;

  /** `missing` tells the fragments that a block lacks. */
  constructor(blocks: number, missing: (index: number) => number, options: ReceiverOptions) {
    this.blocks = blocks;
    this.#missing = missing;
    this.#options = options;
    this.#reportMs = options.stallMs;
    this.#wants = new BlockRing(blocks);
  }

  /** Urgent blocks that were asked for again. */
  get urgentTimeouts(): number {
    return this.#urgent.timeouts;
  }

  /** Background and urgent blocks that are not here yet. */
  get left(): number {
    return this.#wanted + this.#outstanding + this.#lostBlocks + this.#urgent.size;
  }

  /** Whether a block that arrives is to be kept. */
  accepts(index: number): boolean {
    return index < this.blocks && this.#states.of(index).state[index & AT] !== State.Done;
  }

  /** Whether a block was asked for, or waits to be, and is not here yet. */
  asked(index: number): boolean {
    if (index >= this.blocks) return false;
    const state = this.#states.of(index).state[index & AT];
    return state !== State.None && state !== State.Done;
  }

  request(indexes: Iterable<number>, urgent: boolean, nowMs: number): void {
    if (this.left === 0) {
      this.#heardMs = nowMs;
      this.#reportMs = this.#options.stallMs;
    }
    for (const index of indexes) {
      if (!(index >= 0 && index < this.blocks)) throw new RangeError(`Block ${index} of an object of ${this.blocks}`);
      const { state, attempts, queued } = this.#states.of(index);
      const at = index & AT;
      const before = state[at];
      if (urgent && before !== State.Urgent && this.#urgent.size < this.#options.maxUrgent) {
        this.#uncount(before);
        state[at] = State.Urgent;
        attempts[at] = 0;
        this.#urgent.add(index, nowMs);
        this.stats.requested++;
      } else if (before === State.None || before === State.Done) {
        if (queued[at] === 0 && this.#wants.push(0, index)) queued[at] = 1;
        state[at] = State.Wanted;
        attempts[at] = 0;
        this.#wanted++;
        this.stats.requested++;
      }
    }
  }

  cancel(indexes: Iterable<number>): void {
    for (const index of indexes) if (this.accepts(index)) this.#settle(index, State.None);
  }

  /** A fragment of a block came. `stream`: in the order of the server's stream. */
  fragment(index: number, stream: boolean, nowMs: number): void {
    this.#heard(nowMs);
    if (!stream) return;
    const { state, order, attempts } = this.#states.of(index);
    const at = index & AT;
    // One that was asked for again may answer the first asking: nothing follows from it.
    if (state[at] === State.Asked && attempts[at] === 0) this.#lostBefore((order[at] ?? 0) - REORDER_BLOCKS);
  }

  /** A block is whole, or is absent at the server. Whether it had been asked for. */
  arrived(index: number, nowMs: number): boolean {
    this.#heard(nowMs);
    const { state, attempts, order } = this.#states.of(index);
    const at = index & AT;
    const before = state[at];
    if (before === State.Urgent) this.#urgent.arrived(index, nowMs);
    else if (before === State.Asked && attempts[at] === 0) {
      const head = this.#asked[this.#askedHead];
      // The oldest one asked for gives a sample: one for a window's worth of blocks or so.
      if (head !== undefined && head.order === order[at]) this.trip.sample(nowMs - head.sentMs);
    }
    if (before === State.Asked) this.#progressMs = nowMs;
    this.#settle(index, State.Done);
    this.stats.delivered++;
    if (before === State.None) this.stats.overheard++;
    return before !== State.None;
  }

  /** The server's stream has ended: what was asked for a round trip ago and is not here was lost. */
  streamEnded(nowMs: number): void {
    const before = nowMs - Math.max(1, 1.25 * Math.min(this.trip.leastMs, this.#urgent.trip.leastMs, 20));
    for (let at = this.#askedHead; at < this.#asked.length; at++) {
      const entry = this.#asked[at];
      if (entry === undefined || entry.sentMs > before) break;
      this.#lost(entry);
      this.#askedHead = at + 1;
    }
    this.#urgent.lost(before, nowMs);
  }

  /** The requests to send now. `timers`: with those for which the time is up. */
  poll(nowMs: number, timers: boolean): Ask[] {
    const asks: Ask[] = [];
    this.#pollUrgent(asks, nowMs, timers);
    if (timers) this.#pollTimeouts(nowMs);
    if (this.#again.length > 0) this.#pollAgain(asks, nowMs);
    this.#pollWindow(asks, nowMs);
    return asks;
  }

  /** When `poll` or `silence` may have something, without another event. */
  deadlineMs(): number | undefined {
    let due = this.#urgent.dueMs();
    this.#skipSettled();
    const head = this.#asked[this.#askedHead];
    if (head !== undefined) due = Math.min(due, this.#timeoutAtMs(head.sentMs));
    if (this.#lostBlocks > 0 || this.#opening()) due = 0;
    if (this.left > 0) due = Math.min(due, this.#heardMs + this.#reportMs);
    return due === Infinity ? undefined : due;
  }

  /** Milliseconds of silence that are to be reported: `stallMs`, and whenever that has doubled. */
  silence(nowMs: number): number | undefined {
    if (this.left === 0 || nowMs - this.#heardMs < this.#reportMs) return undefined;
    this.#reportMs *= 2;
    return nowMs - this.#heardMs;
  }

  #heard(nowMs: number): void {
    this.#heardMs = nowMs;
    this.#reportMs = this.#options.stallMs;
    this.#backoff = 1;
  }

  /** While blocks come, what was lost shows by the order: the timer runs from the last one on. */
  #timeoutAtMs(sentMs: number): number {
    return Math.max(sentMs, this.#progressMs) + Math.min(this.trip.timeoutMs() * this.#backoff, 4000);
  }

  #pollUrgent(asks: Ask[], nowMs: number, timers: boolean): void {
    if (this.#urgent.size === 0) return;
    const fresh: number[] = [];
    const repeated: number[] = [];
    this.#urgent.poll(nowMs, timers, fresh, repeated);
    if (fresh.length > 0) asks.push({ urgent: true, unicast: false, ranges: this.#ranges(fresh) });
    if (repeated.length > 0) asks.push({ urgent: true, unicast: true, ranges: this.#ranges(repeated) });
  }

  #pollTimeouts(nowMs: number): void {
    let timedOut = false;
    for (;;) {
      this.#skipSettled();
      const head = this.#asked[this.#askedHead];
      if (head === undefined || this.#timeoutAtMs(head.sentMs) > nowMs) break;
      this.#askedHead++;
      this.#lost(head);
      this.stats.timeouts++;
      timedOut = true;
    }
    if (timedOut) this.#backoff = Math.min(this.#backoff * 2, MAX_BACKOFF);
  }

  /** What was lost is asked for again, at once; the window has room for it already. */
  #pollAgain(asks: Ask[], nowMs: number): void {
    const stream: number[] = [];
    const unicast: number[] = [];
    const endGame = this.left <= this.#options.endGame;
    for (const index of this.#again) {
      const { state, attempts } = this.#states.of(index);
      const at = index & AT;
      if (state[at] !== State.Lost) continue;
      this.#lostBlocks--;
      (endGame || (attempts[at] ?? 0) > UNICAST_ATTEMPT ? unicast : stream).push(index);
      this.#ask(index, nowMs);
    }
    this.#again = [];
    if (stream.length > 0) asks.push({ urgent: false, unicast: false, ranges: this.#ranges(stream) });
    if (unicast.length > 0) asks.push({ urgent: false, unicast: true, ranges: this.#ranges(unicast) });
  }

  #opening(): boolean {
    const room = this.#options.window - this.#outstanding;
    return this.#wanted > 0 && room > 0 && (room >= STEP || room >= this.#options.window / 4);
  }

  #pollWindow(asks: Ask[], nowMs: number): void {
    if (!this.#opening()) return;
    const indexes: number[] = [];
    while (this.#outstanding < this.#options.window && this.#wants.shift()) {
      const index = this.#wants.index;
      const { state, queued } = this.#states.of(index);
      queued[index & AT] = 0;
      if (state[index & AT] !== State.Wanted) continue;
      this.#wanted--;
      this.#ask(index, nowMs);
      indexes.push(index);
    }
    if (indexes.length > 0) asks.push({ urgent: false, unicast: false, ranges: this.#ranges(indexes) });
  }

  #ask(index: number, nowMs: number): void {
    const chunk = this.#states.of(index);
    const at = index & AT;
    chunk.state[at] = State.Asked;
    chunk.order[at] = ++this.#order;
    this.#outstanding++;
    if (this.#askedHead > 1024 && this.#askedHead * 2 > this.#asked.length) {
      this.#asked = this.#asked.slice(this.#askedHead);
      this.#askedHead = 0;
    }
    this.#asked.push({ index, order: this.#order, sentMs: nowMs });
  }

  #lostBefore(order: number): void {
    for (;;) {
      const head = this.#asked[this.#askedHead];
      if (head === undefined || head.order >= order) return;
      this.#askedHead++;
      if (this.#lost(head)) this.stats.lossesSeen++;
    }
  }

  #lost(entry: { readonly index: number; readonly order: number }): boolean {
    const { state, attempts, order } = this.#states.of(entry.index);
    const at = entry.index & AT;
    if (state[at] !== State.Asked || order[at] !== entry.order) return false;
    state[at] = State.Lost;
    this.#lostBlocks++;
    attempts[at] = Math.min((attempts[at] ?? 0) + 1, 255);
    this.#outstanding--;
    this.#again.push(entry.index);
    return true;
  }

  #skipSettled(): void {
    for (;;) {
      const head = this.#asked[this.#askedHead];
      if (head === undefined) {
        this.#asked = [];
        this.#askedHead = 0;
        return;
      }
      const { state, order } = this.#states.of(head.index);
      const at = head.index & AT;
      if (state[at] === State.Asked && order[at] === head.order) return;
      this.#askedHead++;
    }
  }

  /** Adjacent blocks that lack the same fragments become one range. */
  #ranges(indexes: readonly number[]): Range[] {
    const ranges: Range[] = [];
    let last: Range | undefined;
    for (const index of indexes) {
      const mask = this.#missing(index) & ALL_FRAGMENTS;
      if (
        last !== undefined && last.index + last.count === index && last.mask === mask && last.count < MAX_RANGE_BLOCKS
      ) {
        last.count++;
      } else {
        last = { index, count: 1, mask };
        ranges.push(last);
      }
    }
    return ranges;
  }

  #settle(index: number, state: number): void {
    const chunk = this.#states.of(index);
    const at = index & AT;
    this.#uncount(chunk.state[at]);
    this.#urgent.remove(index);
    chunk.state[at] = state;
  }

  #uncount(state: number | undefined): void {
    if (state === State.Asked) this.#outstanding--;
    else if (state === State.Wanted) this.#wanted--;
    else if (state === State.Lost) this.#lostBlocks--;
  }
}
