/** What a coordinator has on this host during one stretch of time in which both hear each other: its clones, and news of them. */
import type { CloneNews } from "../fork/clone_host.ts";
import { MAX_NEWS } from "./wire.ts";

/** Clones of one coordinator here at a time. Each is news at most three times: it runs, is whole, and is at its end. */
export const MAX_CLONES_A_PEER = 10_000;

export interface GuestClone {
  readonly id: number;
  readonly domid: number;
  started: boolean;
  /** The snapshot that its memory comes from, once it is started. */
  snapshot: string | undefined;
  /** News that need telling once only. */
  told: Set<CloneNews["kind"]>;
  /** The rest of its memory is being brought in. */
  filling: boolean;
}

export class Session {
  readonly peer: string;
  readonly instance: string;
  readonly id: string;
  readonly tickets = new Map<string, Map<number, GuestClone>>();
  heardMs: number;
  /** Why it is over; undefined while it lasts. */
  over: string | undefined;
  readonly #news: { readonly number: number; readonly news: CloneNews }[] = [];
  #next = 1;
  #wake: (() => void) | undefined;
  readonly #queues = new Map<string, Promise<unknown>>();

  constructor(peer: string, instance: string, id: string, nowMs: number) {
    this.peer = peer;
    this.instance = instance;
    this.id = id;
    this.heardMs = nowMs;
  }

  get cloneCount(): number {
    let sum = 0;
    for (const clones of this.tickets.values()) sum += clones.size;
    return sum;
  }

  get pendingNews(): number {
    return this.#news.length;
  }

  clone(ticket: string, id: number): GuestClone | undefined {
    return this.tickets.get(ticket)?.get(id);
  }

  add(ticket: string, id: number, domid: number): void {
    const clones = this.tickets.get(ticket) ?? new Map<number, GuestClone>();
    this.tickets.set(ticket, clones);
    clones.set(id, { id, domid, started: false, snapshot: undefined, told: new Set(), filling: false });
  }

  remove(ticket: string, id: number): void {
    const clones = this.tickets.get(ticket);
    clones?.delete(id);
    if (clones?.size === 0) this.tickets.delete(ticket);
  }

  /** Calls for one ticket follow one another: an end comes after the making that it is meant for. */
  inOrder<T>(ticket: string, work: () => Promise<T>): Promise<T> {
    const done = (this.#queues.get(ticket) ?? Promise.resolve()).then(work);
    const settled = done.then(() => {}, () => {});
    this.#queues.set(ticket, settled);
    void settled.then(() => {
      if (this.#queues.get(ticket) === settled) this.#queues.delete(ticket);
    });
    return done;
  }

  /** Something happened to a clone of this session. Those at their end leave it. */
  tell(news: CloneNews): void {
    const clone = this.clone(news.ticket, news.id);
    if (clone === undefined || clone.told.has(news.kind)) return;
    clone.told.add(news.kind);
    if (news.kind === "exited" || news.kind === "ended") this.remove(news.ticket, news.id);
    if (this.over !== undefined) return;
    this.#news.push({ number: this.#next++, news });
    this.#wake?.();
  }

  /** News after number `seen`, as soon as there are some, or none after `holdMs`. */
  async take(seen: number, holdMs: number): Promise<readonly { number: number; news: CloneNews }[]> {
    while ((this.#news[0]?.number ?? Infinity) <= seen) this.#news.shift();
    if (this.#news.length === 0 && holdMs > 0 && this.over === undefined) {
      // Only the last heartbeat waits: an earlier one was given up by its sender.
      this.#wake?.();
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, holdMs);
        this.#wake = () => {
          clearTimeout(timer);
          resolve();
        };
      });
      this.#wake = undefined;
    }
    return this.#news.slice(0, MAX_NEWS);
  }

  end(reason: string): void {
    this.over ??= reason;
    this.#wake?.();
  }
}
