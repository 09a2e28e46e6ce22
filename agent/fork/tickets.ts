/** The books of tickets: what each clone's state is, and who waits for the end. Pure but for the listeners. */
import type { CloneInfo, CloneState, EngineEvent, ForkSummary, TicketInfo, TicketState } from "../api/engine.ts";
import type { GuestShape } from "./descriptor.ts";

/** Ended tickets that are remembered. */
const REMEMBERED = 256;

type Writable<T> = { -readonly [K in keyof T]: T[K] };

export class CloneRecord {
  readonly ticket: string;
  readonly id: number;
  readonly name: string;
  readonly uuid: string;
  readonly host: string;
  domid: number | undefined;
  state: CloneState = "shell";
  reason: string | undefined;
  status: number | undefined;
  data: string | undefined;
  readonly times: Writable<CloneInfo["times"]> = {};
  memory: Readonly<Record<string, number>> | undefined;

  constructor(ticket: string, id: number, name: string, uuid: string, host: string) {
    this.ticket = ticket;
    this.id = id;
    this.name = name;
    this.uuid = uuid;
    this.host = host;
  }

  get ended(): boolean {
    return this.state === "exited" || this.state === "killed" || this.state === "lost";
  }

  info(): CloneInfo {
    const { ticket, id, name, uuid, host, domid, state, reason, status, data, times, memory } = this;
    return {
      ticket,
      id,
      name,
      uuid,
      host,
      state,
      times: { ...times },
      ...(domid === undefined ? {} : { domid }),
      ...(reason === undefined ? {} : { reason }),
      ...(status === undefined ? {} : { status }),
      ...(data === undefined ? {} : { data }),
      ...(memory === undefined ? {} : { memory }),
    };
  }
}

export class Ticket {
  readonly name: string;
  readonly family: string;
  readonly parent: { readonly domid: number; readonly name: string };
  readonly shape: GuestShape;
  readonly clones: CloneRecord[] = [];
  /** A step of it is under way. */
  busy = false;
  forked = false;
  ended = false;
  /** Its parent is gone: another domain may get the domid. */
  orphaned = false;
  /** When the fork began, on the engine's clock. */
  forkedAtMs = 0;
  fork: ForkSummary | undefined;
  readonly waiters = new Set<() => void>();

  constructor(name: string, family: string, parent: { domid: number; name: string }, shape: GuestShape) {
    this.name = name;
    this.family = family;
    this.parent = parent;
    this.shape = shape;
  }

  get state(): TicketState {
    return this.ended ? "ended" : this.forked ? "cloned" : "ready";
  }

  clone(id: number): CloneRecord | undefined {
    return this.clones.find((clone) => clone.id === id);
  }

  info(): TicketInfo {
    return {
      ticket: this.name,
      parent: this.parent,
      granted: this.clones.length,
      state: this.state,
      clones: this.clones.map((clone) => clone.info()),
      ...(this.fork === undefined ? {} : { fork: this.fork }),
    };
  }
}

export class Tickets {
  readonly #byName = new Map<string, Ticket>();
  readonly #listeners = new Set<(event: EngineEvent) => void>();
  readonly #onListenerError: (error: unknown) => void;

  constructor(onListenerError: (error: unknown) => void) {
    this.#onListenerError = onListenerError;
  }

  add(ticket: Ticket): void {
    this.#byName.set(ticket.name, ticket);
    const ended = [...this.#byName.values()].filter((each) => each.ended);
    for (const old of ended.slice(0, Math.max(0, ended.length - REMEMBERED))) this.#byName.delete(old.name);
  }

  get(name: string): Ticket | undefined {
    return this.#byName.get(name);
  }

  all(): Ticket[] {
    return [...this.#byName.values()];
  }

  /** The clone that is a domain of `host` now. */
  cloneOf(host: string, domid: number): { ticket: Ticket; clone: CloneRecord } | undefined {
    for (const ticket of this.#byName.values()) {
      const clone = ticket.clones.find((each) => each.host === host && each.domid === domid && !each.ended);
      if (clone !== undefined) return { ticket, clone };
    }
    return undefined;
  }

  /** A clone came to its end. The ticket's last one ends the ticket, and those who wait for it go on. */
  cloneEnded(ticket: Ticket, clone: CloneRecord, state: "exited" | "killed" | "lost", reason?: string): void {
    if (clone.ended) return;
    clone.state = state;
    clone.reason = reason;
    this.emit({ type: "clone", clone: clone.info() });
    if (ticket.forked && ticket.clones.every((each) => each.ended)) this.end(ticket);
  }

  end(ticket: Ticket): void {
    if (ticket.ended) return;
    ticket.ended = true;
    this.emit({ type: "ticket", ticket: ticket.info() });
    for (const wake of [...ticket.waiters]) wake();
  }

  on(listener: (event: EngineEvent) => void): Disposable {
    this.#listeners.add(listener);
    return { [Symbol.dispose]: () => void this.#listeners.delete(listener) };
  }

  emit(event: EngineEvent): void {
    for (const listener of this.#listeners) {
      try {
        listener(event);
      } catch (error) {
        this.#onListenerError(error);
      }
    }
  }
}
