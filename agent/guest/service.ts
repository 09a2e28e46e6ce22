/** Serves the fork calls of every guest of this host: one {@link GuestSession} for each domain that xenstored knows. */
import { getLogger } from "@logtape/logtape";
import type { Engine } from "../api/engine.ts";
import { type Clock, type GuestStore, SYSTEM_CLOCK } from "./ports.ts";
import { GuestSession, type SessionLimits } from "./session.ts";

const logger = getLogger(["snowflock", "guest"]);

export interface GuestServiceOptions {
  readonly store: GuestStore;
  readonly engine: Engine;
  /** Default: 10 a second, 20 at once. */
  readonly limits?: SessionLimits;
  readonly clock?: Clock;
  /** Which domains may ask. Default: all but domain 0. */
  readonly serves?: (domid: number) => boolean;
}

export class GuestService implements AsyncDisposable {
  readonly #options: GuestServiceOptions;
  readonly #sessions = new Map<number, GuestSession>();
  readonly #watches = new AsyncDisposableStack();
  #stale = false;
  #refreshing: Promise<void> | undefined;
  #closed = false;

  private constructor(options: GuestServiceOptions) {
    this.#options = options;
  }

  /** Serves the domains that there are and those to come. Rejects if xenstore cannot be watched. */
  static async start(options: GuestServiceOptions): Promise<GuestService> {
    const service = new GuestService(options);
    try {
      for (const event of ["@introduceDomain", "@releaseDomain"]) {
        service.#watches.use(await options.store.watch(event, () => void service.refresh()));
      }
    } catch (error) {
      await service[Symbol.asyncDispose]();
      throw error;
    }
    await service.refresh();
    return service;
  }

  /** Domids being served, ascending. */
  get domids(): number[] {
    return [...this.#sessions.keys()].sort((a, b) => a - b);
  }

  /** Looks for domains that came and went. Calls that overlap share one look, which begins after the last of them. */
  refresh(): Promise<void> {
    this.#stale = true;
    return this.#refreshing ??= this.#refreshUntilFresh().finally(() => this.#refreshing = undefined);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#closed = true;
    await this.#watches.disposeAsync();
    await this.#refreshing;
    await Promise.all([...this.#sessions.keys()].map((domid) => this.#close(domid)));
  }

  async #refreshUntilFresh(): Promise<void> {
    while (this.#stale && !this.#closed) {
      this.#stale = false;
      try {
        await this.#refreshOnce();
      } catch (error) {
        logger.error("Cannot look for domains: {error}", { error });
      }
    }
  }

  async #refreshOnce(): Promise<void> {
    const { store, serves = () => true } = this.#options;
    const names = await store.list("/local/domain");
    const domids = new Set(names.filter((name) => /^[1-9]\d{0,4}$/.test(name)).map(Number).filter(serves));
    for (const domid of this.#sessions.keys()) {
      // Not awaited: a request of a dead guest may take its time, and others must not wait for it.
      if (!domids.has(domid)) this.#close(domid).catch((error) => logger.warn("{error}", { error }));
    }
    for (const domid of domids) {
      if (this.#closed) return;
      if (!this.#sessions.has(domid)) await this.#open(domid);
    }
  }

  async #open(domid: number): Promise<void> {
    const { store, engine, clock = SYSTEM_CLOCK, limits = { requestsPerSecond: 10, burst: 20 } } = this.#options;
    try {
      this.#sessions.set(domid, await GuestSession.open({ domid, store, engine, clock, limits }));
    } catch (error) {
      // It may be gone already; one that lives will be found by the next look.
      logger.warn("Cannot serve domain {domid}: {error}", { domid, error });
    }
  }

  async #close(domid: number): Promise<void> {
    const session = this.#sessions.get(domid);
    this.#sessions.delete(domid);
    await session?.[Symbol.asyncDispose]();
  }
}
