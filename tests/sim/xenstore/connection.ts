/** One client's connection to the simulated xenstored. */
import { encodeMessage, type Message, MessageReader } from "../../../hypercall/xenstore/wire.ts";
import type { XenstoreTransport } from "../../../hypercall/xenstore/mod.ts";
import type { StoreNode } from "./tree.ts";

export interface Watch {
  /** As the client gave it. */
  readonly given: string;
  readonly path: string;
  readonly token: string;
}

export interface Transaction {
  readonly id: number;
  /** The tree when it began. */
  readonly base: StoreNode;
  /** The tree as it sees it. */
  root: StoreNode;
  /** Generations, in `base`, of the nodes that it looked at; -1 for one that was not there. */
  readonly accessed: Map<string, number>;
  /** What it did, to be done again to the real tree. */
  readonly changes: ((root: StoreNode) => StoreNode)[];
  /** Whom to tell of it. */
  readonly events: { readonly path: string; readonly removed: StoreNode | undefined }[];
}

/** A client's end is {@link StoreConnection.transport}; a guest in the simulator may use {@link StoreConnection.request} instead. */
export class StoreConnection {
  readonly watches: Watch[] = [];
  readonly transactions = new Map<number, Transaction>();
  readonly #reader = new MessageReader();
  readonly #handle: (connection: StoreConnection, message: Message) => void;
  readonly #onClose: (connection: StoreConnection) => void;
  #output: Uint8Array[] = [];
  #waiting: ((chunk: Uint8Array | undefined) => void) | undefined;
  #closed = false;

  constructor(
    readonly domid: number,
    handle: (connection: StoreConnection, message: Message) => void,
    onClose: (connection: StoreConnection) => void,
  ) {
    this.#handle = handle;
    this.#onClose = onClose;
  }

  get closed(): boolean {
    return this.#closed;
  }

  /** Bytes from the client, in any chunks. A length beyond the protocol ends the connection. */
  feed(bytes: Uint8Array): void {
    if (this.#closed) throw new Error("the connection to xenstored is closed");
    let messages: Message[];
    try {
      messages = this.#reader.push(bytes);
    } catch {
      return this.close();
    }
    for (const message of messages) if (!this.#closed) this.#handle(this, message);
  }

  /** To the client. */
  emit(message: Message): void {
    if (this.#closed) return;
    const bytes = encodeMessage(message);
    if (this.#waiting === undefined) {
      this.#output.push(bytes);
      return;
    }
    const waiting = this.#waiting;
    this.#waiting = undefined;
    waiting(bytes);
  }

  /** What was sent to the client and not taken yet. */
  take(): Uint8Array[] {
    const output = this.#output;
    this.#output = [];
    return output;
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.watches.length = 0;
    this.transactions.clear();
    this.#onClose(this);
    this.#waiting?.(undefined);
    this.#waiting = undefined;
  }

  /** The client's end, for the client in `hypercall/xenstore/`. */
  get transport(): XenstoreTransport {
    return {
      receive: () => {
        const chunk = this.#output.shift();
        if (chunk !== undefined) return Promise.resolve(chunk);
        if (this.#closed) return Promise.resolve(undefined);
        return new Promise((resolve) => this.#waiting = resolve);
      },
      send: (bytes) => new Promise((resolve) => resolve(this.feed(bytes))),
      [Symbol.dispose]: () => this.close(),
    };
  }
}
