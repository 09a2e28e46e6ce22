/** The blocks that a vCPU waits for: few, each with a timer of its own. Deterministic; the time is an argument. */
import { RoundTrip } from "./round_trip.ts";

const MAX_TIMEOUT_MS = 1000;

interface Urgent {
  readonly index: number;
  readonly firstMs: number;
  sentMs: number;
  dueMs: number;
  attempts: number;
}

export class UrgentBlocks {
  timeouts = 0;
  readonly trip = new RoundTrip({ initialMs: 20, minMs: 4, maxMs: MAX_TIMEOUT_MS });
  readonly #blocks = new Map<number, Urgent>();

  get size(): number {
    return this.#blocks.size;
  }

  add(index: number, nowMs: number): void {
    this.#blocks.set(index, { index, firstMs: nowMs, sentMs: nowMs, dueMs: nowMs, attempts: 0 });
  }

  /** No more is asked for it. */
  remove(index: number): void {
    this.#blocks.delete(index);
  }

  arrived(index: number, nowMs: number): void {
    const urgent = this.#blocks.get(index);
    if (urgent === undefined || !this.#blocks.delete(index) || urgent.attempts === 0) return;
    if (urgent.attempts === 1) this.trip.sample(nowMs - urgent.sentMs);
    // Which asking was answered is not known. Without any sample a trip longer than the first timeout would never be learned.
    else this.trip.atMost(nowMs - urgent.firstMs);
  }

  /** All that was asked for before `beforeMs` was lost. */
  lost(beforeMs: number, nowMs: number): void {
    for (const urgent of this.#blocks.values()) {
      if (urgent.attempts > 0 && urgent.sentMs <= beforeMs) urgent.dueMs = Math.min(urgent.dueMs, nowMs);
    }
  }

  /** Takes the blocks to ask for now: for the first time, and (where `timers`) again. */
  poll(nowMs: number, timers: boolean, fresh: number[], repeated: number[]): void {
    for (const urgent of this.#blocks.values()) {
      if (urgent.dueMs > nowMs || (urgent.attempts > 0 && !timers)) continue;
      if (urgent.attempts === 0) fresh.push(urgent.index);
      else {
        repeated.push(urgent.index);
        this.timeouts++;
      }
      urgent.sentMs = nowMs;
      urgent.dueMs = nowMs + Math.min(this.trip.timeoutMs() * 2 ** Math.min(urgent.attempts, 8), MAX_TIMEOUT_MS);
      urgent.attempts++;
    }
  }

  /** Infinity where none waits. */
  dueMs(): number {
    let due = Infinity;
    for (const urgent of this.#blocks.values()) due = Math.min(due, urgent.dueMs);
    return due;
  }
}
