/** Requests and answers over one transport: many may be under way at once, told apart by their request id. Watch events go to whoever watches. */
import { XS } from "../abi/mod.ts";
import { errorCodeOf, XenstoreError } from "./errors.ts";
import type { XenstoreTransport } from "./transport.ts";
import { decodeStrings, encodeMessage, type Message, MessageReader } from "./wire.ts";

/** Requests under way; xenstored itself serves one at a time. */
const REQUESTS_MAX = 4096;

interface Pending {
  readonly id: number;
  readonly operation: string;
  readonly type: number;
  readonly resolve: (payload: Uint8Array) => void;
  readonly reject: (error: XenstoreError) => void;
}

export class Connection implements AsyncDisposable {
  readonly #transport: XenstoreTransport;
  readonly #onWatchEvent: (path: string, token: string) => void;
  readonly #pending = new Map<number, Pending>();
  readonly #reading: Promise<void>;
  #sending: Promise<void> = Promise.resolve();
  #nextId = 1;
  /** Why there is no connection any more. */
  #lost: XenstoreError | undefined;
  readonly #closed = Promise.withResolvers<XenstoreError>();

  /** `onWatchEvent` must not throw. */
  constructor(transport: XenstoreTransport, onWatchEvent: (path: string, token: string) => void) {
    this.#transport = transport;
    this.#onWatchEvent = onWatchEvent;
    this.#reading = this.#read();
  }

  /** Settles, with the reason, when the connection has ended. */
  get closed(): Promise<XenstoreError> {
    return this.#closed.promise;
  }

  /** The answer's payload. Throws the error that xenstored names, ENOBUFS for too many at once, ECONNRESET for a lost connection. */
  request(operation: string, type: number, payload: Uint8Array, transactionId = 0): Promise<Uint8Array> {
    if (this.#lost !== undefined) {
      return Promise.reject(new XenstoreError(operation, "ECONNRESET", { cause: this.#lost }));
    }
    if (this.#pending.size >= REQUESTS_MAX) return Promise.reject(new XenstoreError(operation, "ENOBUFS"));
    const requestId = this.#newId();
    let bytes: Uint8Array;
    try {
      bytes = encodeMessage({ type, requestId, transactionId, payload });
    } catch (error) {
      return Promise.reject(new XenstoreError(operation, "E2BIG", { cause: error }));
    }
    const { promise, resolve, reject } = Promise.withResolvers<Uint8Array>();
    this.#pending.set(requestId, { id: requestId, operation, type, resolve, reject });
    this.#sending = this.#sending.then(() => this.#send(bytes));
    return promise;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#end(new XenstoreError("use xenstore", "ECONNRESET", { cause: "closed here" }));
    await this.#reading;
    await this.#sending;
  }

  #newId(): number {
    do {
      this.#nextId = this.#nextId >= 0xffff_ffff ? 1 : this.#nextId + 1;
    } while (this.#pending.has(this.#nextId));
    return this.#nextId;
  }

  async #send(bytes: Uint8Array): Promise<void> {
    if (this.#lost !== undefined) return;
    try {
      await this.#transport.send(bytes);
    } catch (error) {
      this.#end(new XenstoreError("write to xenstored", "ECONNRESET", { cause: error }));
    }
  }

  async #read(): Promise<void> {
    const messages = new MessageReader();
    try {
      while (this.#lost === undefined) {
        const chunk = await this.#transport.receive();
        if (chunk === undefined) break;
        for (const message of messages.push(chunk)) this.#take(message);
      }
      this.#end(new XenstoreError("read from xenstored, which has closed", "ECONNRESET"));
    } catch (error) {
      this.#end(new XenstoreError("read from xenstored", "ECONNRESET", { cause: error }));
    }
  }

  #take({ type, requestId, payload }: Message): void {
    // The kernel's device leaves the ids of a watch event unset: look at the type first (xenbus_dev_frontend.c).
    if (type === XS.WATCH_EVENT) {
      const [path, token] = decodeStrings(payload);
      if (path !== undefined && token !== undefined) this.#onWatchEvent(path, token);
      return;
    }
    const pending = this.#pending.get(requestId) ?? this.#oldestWatch(type, requestId);
    if (pending === undefined) throw new XenstoreError(`match an answer to request ${requestId}`, "EIO");
    this.#pending.delete(pending.id);
    if (type === XS.ERROR) {
      pending.reject(new XenstoreError(pending.operation, errorCodeOf(decodeStrings(payload)[0] ?? "")));
    } else if (type !== pending.type) {
      pending.reject(new XenstoreError(`${pending.operation} (answer of type ${type})`, "EIO"));
    } else {
      pending.resolve(payload);
    }
  }

  /** The kernel's device answers these itself, in order, with id 0, which no request has (xenbus_dev_frontend.c). */
  #oldestWatch(type: number, requestId: number): Pending | undefined {
    if (requestId !== 0 || (type !== XS.WATCH && type !== XS.UNWATCH)) return undefined;
    for (const pending of this.#pending.values()) {
      if (pending.type === type) return pending;
    }
    return undefined;
  }

  #end(reason: XenstoreError): void {
    if (this.#lost !== undefined) return;
    this.#lost = reason;
    this.#transport[Symbol.dispose]();
    for (const { operation, reject } of this.#pending.values()) {
      reject(new XenstoreError(operation, "ECONNRESET", { cause: reason }));
    }
    this.#pending.clear();
    this.#closed.resolve(reason);
  }
}
