/** A guest's (or a test's) way to the simulated xenstored: synchronous, since nothing there waits. */
import { XS } from "../../../hypercall/abi/mod.ts";
import { decodeStrings, encodeMessage, encodeStrings, MessageReader } from "../../../hypercall/xenstore/wire.ts";
import type { StoreConnection } from "../xenstore/connection.ts";

/** What xenstored answered instead of OK. */
export class StoreRefusal extends Error {
  override readonly name = "StoreRefusal";
  constructor(readonly code: string) {
    super(`xenstored answered ${code}`);
  }
}

export class GuestStore {
  readonly #connection: StoreConnection;
  readonly #reader = new MessageReader();
  /** Paths and tokens of watch events that were not taken yet. */
  #events: { readonly path: string; readonly token: string }[] = [];

  constructor(connection: StoreConnection) {
    this.#connection = connection;
  }

  /** One request: the answer's payload. Throws a {@link StoreRefusal}. */
  request(type: number, payload: Uint8Array, transactionId = 0): Uint8Array {
    this.#connection.feed(encodeMessage({ type, requestId: 1, transactionId, payload }));
    const answer = this.#receive().find((message) => message.type !== XS.WATCH_EVENT);
    if (answer === undefined) throw new StoreRefusal("nothing");
    if (answer.type === XS.ERROR) throw new StoreRefusal(decodeStrings(answer.payload)[0] ?? "");
    return answer.payload;
  }

  #receive() {
    const messages = this.#connection.take().flatMap((chunk) => this.#reader.push(chunk));
    for (const { type, payload } of messages) {
      if (type !== XS.WATCH_EVENT) continue;
      const [path = "", token = ""] = decodeStrings(payload);
      this.#events.push({ path, token });
    }
    return messages;
  }

  read(path: string): string | undefined {
    try {
      return new TextDecoder().decode(this.request(XS.READ, encodeStrings(path)));
    } catch (error) {
      if (error instanceof StoreRefusal && error.code === "ENOENT") return undefined;
      throw error;
    }
  }

  write(path: string, value: string | Uint8Array, transactionId = 0): void {
    const head = encodeStrings(path);
    const body = typeof value === "string" ? new TextEncoder().encode(value) : value;
    const payload = new Uint8Array(head.byteLength + body.byteLength);
    payload.set(head);
    payload.set(body, head.byteLength);
    this.request(XS.WRITE, payload, transactionId);
  }

  remove(path: string): void {
    this.request(XS.RM, encodeStrings(path));
  }

  list(path: string): string[] {
    return decodeStrings(this.request(XS.DIRECTORY, encodeStrings(path)));
  }

  setPermissions(path: string, ...permissions: readonly string[]): void {
    this.request(XS.SET_PERMS, encodeStrings(path, ...permissions));
  }

  watch(path: string, token: string): void {
    this.request(XS.WATCH, encodeStrings(path, token));
  }

  begin(): number {
    return Number(decodeStrings(this.request(XS.TRANSACTION_START, encodeStrings("")))[0]);
  }

  end(transactionId: number, commit: boolean): void {
    this.request(XS.TRANSACTION_END, encodeStrings(commit ? "T" : "F"), transactionId);
  }

  /** Watch events since the last call. */
  takeEvents(): { readonly path: string; readonly token: string }[] {
    if (!this.#connection.closed) this.#receive();
    const events = this.#events;
    this.#events = [];
    return events;
  }

  get closed(): boolean {
    return this.#connection.closed;
  }

  close(): void {
    this.#connection.close();
  }
}

/** The code of a refusal that `body` meets; undefined if it meets none. */
export function refusalOf(body: () => unknown): string | undefined {
  try {
    body();
    return undefined;
  } catch (error) {
    if (error instanceof StoreRefusal) return error.code;
    throw error;
  }
}
