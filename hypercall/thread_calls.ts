/**
 * Typed calls from one thread to another. One side serves an object's methods ({@link CallServer}), the other calls them through
 * promises ({@link CallQueue}). Either side of a Worker may serve; on channels of different names both may.
 *
 * A thread that blocks in a {@link import("./ports.ts").Poller} does not see messages. So the caller signals a Wakeup after each
 * post, and the serving thread, woken, gives its event loop a turn:
 *
 *     const server = new CallServer(workerEndpoint(), methods);
 *     for (;;) {
 *       const ready = poller.wait(server.busy ? 1 : -1);
 *       if (ready.includes(wakeup.fd)) wakeup.drain();
 *       // ... what else is ready ...
 *       if (server.busy || ready.includes(wakeup.fd)) await server.turn();
 *     }
 */
import { setImmediate } from "node:timers";

/** A Worker, a worker's own end ({@link workerEndpoint}), or a MessagePort. */
export interface Endpoint {
  postMessage(message: unknown, transfer: Transferable[]): void;
  addEventListener(type: string, listener: (event: Event) => void): void;
  removeEventListener(type: string, listener: (event: Event) => void): void;
  /** Of a MessagePort. */
  start?(): void;
}

/** A worker's own end. Throws where there is none: on the main thread. */
export function workerEndpoint(): Endpoint {
  const scope: object = globalThis;
  if (!isEndpoint(scope)) throw new TypeError("this thread is no Worker");
  return scope;
}

function isEndpoint(scope: object): scope is Endpoint {
  return typeof Reflect.get(scope, "postMessage") === "function";
}

/** The methods of `T`, each with a promise of its result. */
export type Calls<T> = {
  readonly [K in keyof T as T[K] extends (...args: never[]) => unknown ? K : never]: T[K] extends
    (...args: infer A) => infer R ? (...args: A) => Promise<Awaited<R>> : never;
};

/** An error of the other thread, or of the way to it. `name`, `message` and `code` are the other thread's. */
export class ThreadCallError extends Error {
  /** The original's code, where it had one. ENOBUFS: too many calls at once. ECONNRESET: the other thread is gone. */
  readonly code: string | undefined;

  constructor(name: string, message: string, code: string | undefined, options?: ErrorOptions) {
    super(message, options);
    this.name = name;
    this.code = code;
  }
}

const DEFAULT_CHANNEL = "calls";
/** Calls under way. */
const DEFAULT_PENDING_MAX = 1024;
/** Turns of the event loop in which a message that was posted arrives; one is usual. */
const TURNS_MAX = 1000;

interface Fault {
  readonly name: string;
  readonly message: string;
  readonly code: string | undefined;
  readonly stack: string | undefined;
}

type Message =
  | { readonly channel: string; readonly kind: "hello"; readonly posted: Int32Array }
  | {
    readonly channel: string;
    readonly kind: "call";
    readonly id: number;
    readonly method: string;
    readonly args: unknown[];
  }
  | { readonly channel: string; readonly kind: "result"; readonly id: number; readonly value: unknown }
  | { readonly channel: string; readonly kind: "fault"; readonly id: number; readonly fault: Fault }
  | { readonly channel: string; readonly kind: "bye" };

const transfers = new WeakMap<object, readonly Transferable[]>();

/** Marks a value, given as an argument or returned by a method, so that these are moved with it, not copied. */
export function withTransfer<T extends object>(value: T, transferables: readonly Transferable[]): T {
  transfers.set(value, transferables);
  return value;
}

function transfersOf(values: readonly unknown[]): Transferable[] {
  return values.flatMap((value) => typeof value === "object" && value !== null ? transfers.get(value) ?? [] : []);
}

function messageOf(event: Event, channel: string): Message | undefined {
  const data: unknown = "data" in event ? event.data : undefined;
  if (typeof data !== "object" || data === null || Reflect.get(data, "channel") !== channel) return undefined;
  // Only this file posts on its channels, in this process.
  return data as Message;
}

export interface CallQueueOptions {
  /** Signalled after each post: for a thread that blocks. */
  readonly wakeup?: { signal(): void };
  readonly channel?: string;
  /** Calls under way at most (1024). */
  readonly pendingMax?: number;
}

/** The calling side. */
export class CallQueue<T> implements Disposable {
  /** The other thread's methods. */
  readonly calls: Calls<T>;
  readonly #endpoint: Endpoint;
  readonly #channel: string;
  readonly #pendingMax: number;
  readonly #wakeup: { signal(): void } | undefined;
  readonly #pending = new Map<number, PromiseWithResolvers<unknown>>();
  /** How many calls were posted: the server knows by it what it has yet to receive. */
  readonly #posted = new Int32Array(new SharedArrayBuffer(4));
  readonly #closed = Promise.withResolvers<ThreadCallError>();
  readonly #listeners: readonly (readonly [string, (event: Event) => void])[];
  #nextId = 1;
  #lost: ThreadCallError | undefined;

  constructor(endpoint: Endpoint, { wakeup, channel, pendingMax }: CallQueueOptions = {}) {
    this.#endpoint = endpoint;
    this.#wakeup = wakeup;
    this.#channel = channel ?? DEFAULT_CHANNEL;
    this.#pendingMax = pendingMax ?? DEFAULT_PENDING_MAX;
    this.#listeners = [
      ["message", (event) => this.#receive(event)],
      ["messageerror", () => this.#end(gone("sent what could not be read"))],
      ["error", (event) => {
        // The owner learns of it from `closed` and from the calls that fail; it is not the end of this thread too.
        event.preventDefault();
        this.#end(gone("failed", "message" in event ? event.message : undefined));
      }],
    ];
    for (const [type, listener] of this.#listeners) endpoint.addEventListener(type, listener);
    endpoint.start?.();
    this.calls = new Proxy({}, {
      get: (_, method) =>
        // A promise would be awaited by looking for `then`.
        typeof method === "string" && method !== "then" ? (...args: unknown[]) => this.#call(method, args) : undefined,
    }) as Calls<T>;
    this.#post({ channel: this.#channel, kind: "hello", posted: this.#posted }, []);
  }

  /** Calls under way. */
  get pending(): number {
    return this.#pending.size;
  }

  /** Settles, with the reason, when no more calls can be made. */
  get closed(): Promise<ThreadCallError> {
    return this.#closed.promise;
  }

  /** Fails what is under way and all later calls. Whoever terminates a Worker disposes of its queue: no event tells of that. */
  [Symbol.dispose](): void {
    this.#end(gone("was closed"));
  }

  #call(method: string, args: unknown[]): Promise<unknown> {
    if (this.#lost !== undefined) {
      return Promise.reject(
        new ThreadCallError("ThreadCallError", `Cannot call ${method}: ${this.#lost.message}`, this.#lost.code),
      );
    }
    if (this.#pending.size >= this.#pendingMax) {
      const text = `Cannot call ${method}: ${this.#pendingMax} calls are under way`;
      return Promise.reject(new ThreadCallError("ThreadCallError", text, "ENOBUFS"));
    }
    const id = this.#nextId++;
    const pending = Promise.withResolvers<unknown>();
    this.#pending.set(id, pending);
    try {
      this.#post({ channel: this.#channel, kind: "call", id, method, args }, transfersOf(args));
    } catch (cause) {
      this.#pending.delete(id);
      pending.reject(cause);
    }
    return pending.promise;
  }

  #post(message: Message, transfer: Transferable[]): void {
    this.#endpoint.postMessage(message, transfer);
    if (message.kind === "call") Atomics.add(this.#posted, 0, 1);
    this.#wakeup?.signal();
  }

  #receive(event: Event): void {
    const message = messageOf(event, this.#channel);
    if (message?.kind === "bye") return this.#end(gone("has ended"));
    if (message?.kind !== "result" && message?.kind !== "fault") return;
    const pending = this.#pending.get(message.id);
    this.#pending.delete(message.id);
    if (message.kind === "result") return pending?.resolve(message.value);
    const { name, message: text, code, stack } = message.fault;
    pending?.reject(new ThreadCallError(name, text, code, { cause: stack }));
  }

  #end(reason: ThreadCallError): void {
    if (this.#lost !== undefined) return;
    this.#lost = reason;
    for (const [type, listener] of this.#listeners) this.#endpoint.removeEventListener(type, listener);
    for (const pending of this.#pending.values()) pending.reject(reason);
    this.#pending.clear();
    this.#closed.resolve(reason);
  }
}

/** The serving side. Calls begin in the order in which they were made; methods that return promises overlap. */
export class CallServer implements Disposable {
  readonly #endpoint: Endpoint;
  readonly #target: object;
  readonly #channel: string;
  readonly #listener = (event: Event): void => this.#receive(event);
  #posted: Int32Array | undefined;
  #received = 0;
  #running = 0;

  constructor(endpoint: Endpoint, target: object, { channel }: { readonly channel?: string } = {}) {
    this.#endpoint = endpoint;
    this.#target = target;
    this.#channel = channel ?? DEFAULT_CHANNEL;
    endpoint.addEventListener("message", this.#listener);
    endpoint.start?.();
  }

  /** Whether methods are under way that need turns of the event loop to go on. */
  get busy(): boolean {
    return this.#running > 0;
  }

  /** Lets the event loop run until every call that was posted has begun: one turn at least. */
  async turn(): Promise<void> {
    for (let turns = 0; turns < TURNS_MAX; turns++) {
      await new Promise<void>((resolve) => setImmediate(resolve));
      if (this.#posted === undefined || ((Atomics.load(this.#posted, 0) - this.#received) | 0) <= 0) return;
    }
  }

  /** Tells the caller that nothing is served any more. */
  [Symbol.dispose](): void {
    this.#endpoint.removeEventListener("message", this.#listener);
    this.#post({ channel: this.#channel, kind: "bye" }, []);
  }

  #receive(event: Event): void {
    const message = messageOf(event, this.#channel);
    if (message?.kind === "hello") this.#posted = message.posted;
    if (message?.kind !== "call") return;
    this.#received = (this.#received + 1) | 0;
    this.#running++;
    this.#run(message.id, message.method, message.args).finally(() => this.#running--);
  }

  async #run(id: number, method: string, args: unknown[]): Promise<void> {
    const channel = this.#channel;
    try {
      const callee: unknown = method in Object.prototype ? undefined : Reflect.get(this.#target, method);
      if (typeof callee !== "function") throw new TypeError(`there is no method ${method}`);
      const value: unknown = await Reflect.apply(callee, this.#target, args);
      this.#post({ channel, kind: "result", id, value }, transfersOf([value]));
    } catch (error) {
      this.#post({ channel, kind: "fault", id, fault: faultOf(error) }, []);
    }
  }

  #post(message: Message, transfer: Transferable[]): void {
    this.#endpoint.postMessage(message, transfer);
  }
}

function gone(how: string, detail?: unknown): ThreadCallError {
  const text = typeof detail === "string" && detail !== "" ? `: ${detail}` : "";
  return new ThreadCallError("ThreadCallError", `the other thread ${how}${text}`, "ECONNRESET");
}

function faultOf(error: unknown): Fault {
  if (!(error instanceof Error)) return { name: "Error", message: String(error), code: undefined, stack: undefined };
  const code = "code" in error && typeof error.code === "string" ? error.code : undefined;
  return { name: error.name, message: error.message, code, stack: error.stack };
}
