/** Time that only a test moves. */
import type { Clock } from "../../agent/fork/timing.ts";
import type { Clock as GuestClock } from "../../agent/guest/ports.ts";

interface Sleeper {
  readonly dueMs: number;
  readonly wake: () => void;
}

export class SimClock {
  #nowMs = 0;
  #sleepers: Sleeper[] = [];

  get nowMs(): number {
    return this.#nowMs;
  }

  /** Lets time go by: wakes those who are due, in the order of their times. */
  advance(ms: number): void {
    this.#nowMs += ms;
    const due = this.#sleepers.filter(({ dueMs }) => dueMs <= this.#nowMs).toSorted((a, b) => a.dueMs - b.dueMs);
    if (due.length === 0) return;
    this.#sleepers = this.#sleepers.filter(({ dueMs }) => dueMs > this.#nowMs);
    for (const { wake } of due) wake();
  }

  /** The clock as a process has it: one that has been killed never wakes again. */
  of(isDead: () => boolean): Clock & GuestClock {
    return {
      nowMs: () => this.#nowMs,
      sleep: (ms: number, signal?: AbortSignal) =>
        new Promise((resolve) => {
          if (signal?.aborted) return resolve();
          const wake = () => {
            signal?.removeEventListener("abort", wake);
            if (!isDead()) resolve();
          };
          signal?.addEventListener("abort", wake, { once: true });
          this.#sleepers.push({ dueMs: this.#nowMs + ms, wake });
        }),
    };
  }
}
