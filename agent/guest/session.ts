/**
 * The agent's side of one guest. Two loops: the reader takes requests out of xenstore as fast as the guest's token bucket allows, the
 * worker executes them one by one. A guest that floods fills its own bucket and its own short queue, nothing else.
 */
import { getLogger } from "@logtape/logtape";
import { type Engine, EngineError } from "../api/engine.ts";
import { domainPath, NODES } from "./nodes.ts";
import type { Clock, GuestStore } from "./ports.ts";
import { answeredSeq, errorAnswer, type GuestRequest, parseRequest } from "./protocol.ts";
import { execute } from "./requests.ts";
import { TokenBucket } from "./token_bucket.ts";

const logger = getLogger(["snowflock", "guest"]);

export interface SessionLimits {
  /** Requests read per second in the long run. */
  readonly requestsPerSecond: number;
  /** Requests read at once; a guest that wrote more than this before it was its turn again is told so. */
  readonly burst: number;
}

/** Requests of one guest that wait for their turn. A guest's processes rarely ask two things at once. */
const MAX_QUEUED = 4;
/** A guest waits for its answer for ever: one that cannot be written is tried again. */
const WRITE_ATTEMPTS = 5;
const WRITE_PAUSE_MS = 200;
/** Answers kept, so that a request written again is answered again and not executed again. */
const MAX_REMEMBERED = 16;

export interface SessionOptions {
  readonly domid: number;
  readonly store: GuestStore;
  readonly engine: Engine;
  readonly clock: Clock;
  readonly limits: SessionLimits;
}

interface Queued {
  readonly seq: string;
  readonly request: GuestRequest;
}

export class GuestSession implements AsyncDisposable {
  readonly #options: SessionOptions;
  readonly #path: string;
  readonly #bucket: TokenBucket;
  readonly #closed = new AbortController();
  readonly #watches = new AsyncDisposableStack();
  readonly #queue: Queued[] = [];
  /** By sequence number, oldest first. */
  readonly #answers = new Map<string, string>();
  #current: Queued | undefined;
  /** Cuts the current request short, if it is a wait. */
  #interrupt = new AbortController();
  #requestEvents = 0;
  #awakeEvents = 0;
  #awake = false;
  #reading: Promise<void> | undefined;
  #working: Promise<void> | undefined;

  private constructor(options: SessionOptions) {
    this.#options = options;
    this.#path = domainPath(options.domid);
    const { requestsPerSecond, burst } = options.limits;
    this.#bucket = new TokenBucket(requestsPerSecond, burst, options.clock.nowMs());
  }

  /** Starts to serve the domain. What an earlier agent answered is not executed again. */
  static async open(options: SessionOptions): Promise<GuestSession> {
    const session = new GuestSession(options);
    try {
      const answer = await options.store.read(`${session.#path}/${NODES.answer}`);
      const seq = answer === undefined ? undefined : answeredSeq(answer);
      if (seq !== undefined) session.#remember(seq, new TextDecoder().decode(answer));
      session.#watches.use(
        await options.store.watch(`${session.#path}/${NODES.request}`, () => {
          session.#requestEvents++;
          session.#read();
        }),
      );
      session.#watches.use(
        await options.store.watch(`${session.#path}/${NODES.awake}`, () => {
          session.#awakeEvents++;
          session.#read();
        }),
      );
    } catch (error) {
      await session[Symbol.asyncDispose]();
      throw error;
    }
    return session;
  }

  /** Stops serving. Waits for the request being executed: it cannot be left half done. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#closed.abort();
    this.#interrupt.abort();
    this.#queue.length = 0;
    await this.#watches.disposeAsync();
    await this.#reading;
    await this.#working;
  }

  #read(): void {
    if (this.#closed.signal.aborted) return;
    this.#reading ??= this.#readAll().catch((error) => this.#failed("read", error)).finally(() => {
      this.#reading = undefined;
      if (this.#requestEvents > 0 || (this.#awakeEvents > 0 && !this.#awake)) this.#read();
    });
  }

  async #readAll(): Promise<void> {
    while (this.#requestEvents > 0 || (this.#awakeEvents > 0 && !this.#awake)) {
      const waitMs = this.#bucket.take(this.#options.clock.nowMs());
      if (waitMs > 0) {
        await this.#options.clock.sleep(waitMs, this.#closed.signal);
        if (this.#closed.signal.aborted) return this.#forgetEvents();
        continue;
      }
      if (this.#awakeEvents > 0 && !this.#awake) {
        this.#awakeEvents = 0;
        this.#awake = await this.#options.store.read(`${this.#path}/${NODES.awake}`) !== undefined;
        if (this.#awake) this.#options.engine.cloneAwake(this.#options.domid);
      }
      if (this.#requestEvents === 0) continue;
      const events = this.#requestEvents;
      const flooded = events > this.#options.limits.burst;
      this.#requestEvents = 0;
      let value: Uint8Array | undefined;
      try {
        value = await this.#options.store.read(`${this.#path}/${NODES.request}`);
      } catch (error) {
        // Tried again, as often as the bucket allows: the guest waits for an answer.
        this.#requestEvents += events;
        throw error;
      }
      if (this.#closed.signal.aborted) return this.#forgetEvents();
      if (value !== undefined && value.length > 0) await this.#accept(value, flooded);
    }
  }

  #forgetEvents(): void {
    this.#requestEvents = 0;
    this.#awakeEvents = 0;
  }

  /** Takes one request in: answers it at once if it is bad or known, else queues it. */
  async #accept(value: Uint8Array, flooded: boolean): Promise<void> {
    const parsed = parseRequest(value);
    const { seq } = parsed;
    if (parsed.error !== undefined) return await this.#answer(seq, errorAnswer(seq, parsed.error));
    const known = this.#answers.get(seq);
    if (known !== undefined) return await this.#answer(seq, known);
    if (this.#current?.seq === seq || this.#queue.some((queued) => queued.seq === seq)) return;
    if (flooded || this.#queue.length >= MAX_QUEUED) {
      const error = new EngineError("limit", "Too many requests at once from this machine; try again later");
      // Not remembered: the same request may be tried again.
      return await this.#write(errorAnswer(seq, error));
    }
    this.#queue.push({ seq, request: parsed.request });
    this.#interrupt.abort();
    this.#startWork();
  }

  #startWork(): void {
    this.#working ??= this.#work().catch((error) => this.#failed("execute", error)).finally(() => {
      this.#working = undefined;
      this.#current = undefined;
      if (this.#queue.length > 0) this.#startWork();
    });
  }

  async #work(): Promise<void> {
    for (let next = this.#queue.shift(); next !== undefined; next = this.#queue.shift()) {
      this.#current = next;
      this.#interrupt = new AbortController();
      if (this.#queue.length > 0 || this.#closed.signal.aborted) this.#interrupt.abort();
      const { engine, domid } = this.#options;
      const answer = await execute(engine, domid, next.seq, next.request, this.#interrupt.signal);
      await this.#answer(next.seq, answer);
      this.#current = undefined;
    }
  }

  async #answer(seq: string, text: string): Promise<void> {
    if (seq !== "-") this.#remember(seq, text);
    await this.#write(text);
  }

  async #write(text: string): Promise<void> {
    const { store, clock } = this.#options;
    for (let attempt = 1;; attempt++) {
      try {
        await store.writeWithin(this.#path, `${this.#path}/${NODES.answer}`, text);
        return;
      } catch (error) {
        if (attempt === WRITE_ATTEMPTS || this.#closed.signal.aborted) return this.#failed("answer", error);
      }
      await clock.sleep(WRITE_PAUSE_MS, this.#closed.signal);
    }
  }

  #remember(seq: string, answer: string): void {
    this.#answers.delete(seq);
    this.#answers.set(seq, answer);
    for (const oldest of this.#answers.keys()) {
      if (this.#answers.size <= MAX_REMEMBERED) break;
      this.#answers.delete(oldest);
    }
  }

  #failed(what: string, error: unknown): void {
    logger.warn("Cannot {what} a request of domain {domid}: {error}", { what, domid: this.#options.domid, error });
  }
}
