/** A client of xenstored: nodes, transactions, watches, and what dom0 tells it about domains. */
import { XS } from "../abi/mod.ts";
import type { Domid, Gfn, Port } from "../ports.ts";
import { Connection } from "./connection.ts";
import { XenstoreError } from "./errors.ts";
import { checkPath, Nodes, type XenstoreNodes } from "./nodes.ts";
import type { XenstoreTransport } from "./transport.ts";
import { WatchEvents } from "./watch_events.ts";
import { decodeStrings, encodeStrings } from "./wire.ts";

/** How often a transaction that others disturb is tried. */
const TRANSACTION_ATTEMPTS = 32;
/** Watches of one client; xenstored's own limit for a guest is 128. */
const WATCHES_MAX = 8192;

export interface Xenstore extends XenstoreNodes, AsyncDisposable {
  /**
   * Calls back with the path of each node at or below `path` that changes, and once at first. `@introduceDomain` and `@releaseDomain` are
   * paths too. Callbacks are not awaited and must not throw. Ends when disposed of.
   */
  watch(path: string, callback: (changed: string) => void): Promise<AsyncDisposable>;
  /** The same as an iterable. Changes of one path that were not taken yet count once. It ends when disposed of, and throws when the connection is lost. */
  watchEvents(path: string): Promise<WatchEvents>;
  /**
   * All or nothing. Run again, at most 32 times, while others change what it read; then EAGAIN. An error of `body` undoes all and is thrown.
   * `body` must use the nodes it is given.
   */
  transaction<T>(body: (nodes: XenstoreNodes) => Promise<T>): Promise<T>;
  /** Tells xenstored of a domain: its ring page and its port. */
  introduce(domid: Domid, gfn: Gfn, port: Port): Promise<void>;
  isIntroduced(domid: Domid): Promise<boolean>;
  release(domid: Domid): Promise<void>;
  /** Tells xenstored that a suspended domain runs again, so that its next shutdown is announced. */
  resume(domid: Domid): Promise<void>;
  domainPath(domid: Domid): Promise<string>;
  /** Settles when the connection has ended, with the reason. */
  readonly closed: Promise<XenstoreError>;
}

/** A client on this transport, which it owns from now on. */
export function openXenstore(transport: XenstoreTransport): Xenstore {
  return new XenstoreClient(transport);
}

class XenstoreClient extends Nodes implements Xenstore {
  readonly #connection: Connection;
  readonly #watches: Map<string, (changed: string) => void>;
  readonly #iterables = new Set<WatchEvents>();
  #nextToken = 1;

  constructor(transport: XenstoreTransport) {
    const watches = new Map<string, (changed: string) => void>();
    const connection = new Connection(transport, (path, token) => watches.get(token)?.(path));
    super(connection);
    this.#connection = connection;
    this.#watches = watches;
    connection.closed.then((reason) => {
      for (const events of this.#iterables) events.fail(reason);
    });
  }

  get closed(): Promise<XenstoreError> {
    return this.#connection.closed;
  }

  async watch(path: string, callback: (changed: string) => void): Promise<AsyncDisposable> {
    const operation = `watch ${path}`;
    checkPath(operation, path);
    if (this.#watches.size >= WATCHES_MAX) throw new XenstoreError(operation, "ENOBUFS");
    const token = `snowflock-${this.#nextToken++}`;
    // Before the answer: the first event may come ahead of it.
    this.#watches.set(token, callback);
    try {
      await this.#connection.request(operation, XS.WATCH, encodeStrings(path, token));
    } catch (error) {
      this.#watches.delete(token);
      throw error;
    }
    return { [Symbol.asyncDispose]: () => this.#unwatch(path, token) };
  }

  async #unwatch(path: string, token: string): Promise<void> {
    if (!this.#watches.delete(token)) return;
    try {
      await this.#connection.request(`stop watching ${path}`, XS.UNWATCH, encodeStrings(path, token));
    } catch (error) {
      // The watch ended with the connection.
      if (!(error instanceof XenstoreError && error.code === "ECONNRESET")) throw error;
    }
  }

  async watchEvents(path: string): Promise<WatchEvents> {
    const events = new WatchEvents(path);
    const watch = await this.watch(path, (changed) => events.push(changed));
    this.#iterables.add(events);
    events.endWith({
      [Symbol.asyncDispose]: () => {
        this.#iterables.delete(events);
        return watch[Symbol.asyncDispose]();
      },
    });
    return events;
  }

  async transaction<T>(body: (nodes: XenstoreNodes) => Promise<T>): Promise<T> {
    for (let attempt = 1; attempt <= TRANSACTION_ATTEMPTS; attempt++) {
      const id = await this.#begin();
      let value: T;
      try {
        value = await body(new Nodes(this.#connection, id));
      } catch (error) {
        await this.#end(id, false);
        throw error;
      }
      if (await this.#end(id, true)) return value;
    }
    throw new XenstoreError(`complete a transaction in ${TRANSACTION_ATTEMPTS} attempts`, "EAGAIN");
  }

  async #begin(): Promise<number> {
    const operation = "begin a transaction";
    const answer = await this.#connection.request(operation, XS.TRANSACTION_START, encodeStrings(""));
    const [id = ""] = decodeStrings(answer);
    if (!/^[1-9]\d{0,9}$/.test(id) || Number(id) > 0xffff_ffff) throw new XenstoreError(operation, "EIO");
    return Number(id);
  }

  /** Whether it holds: false when it must be done again. */
  async #end(id: number, commit: boolean): Promise<boolean> {
    const operation = commit ? "commit a transaction" : "undo a transaction";
    try {
      await this.#connection.request(operation, XS.TRANSACTION_END, encodeStrings(commit ? "T" : "F"), id);
      return true;
    } catch (error) {
      // An undo that fails has nothing left to undo.
      if (!commit || (error instanceof XenstoreError && error.code === "EAGAIN")) return false;
      throw error;
    }
  }

  async introduce(domid: Domid, gfn: Gfn, port: Port): Promise<void> {
    const payload = encodeStrings(String(domid), String(gfn), String(port));
    await this.#connection.request(`introduce domain ${domid}`, XS.INTRODUCE, payload);
  }

  async isIntroduced(domid: Domid): Promise<boolean> {
    const answer = await this.#ofDomain("ask about", XS.IS_DOMAIN_INTRODUCED, domid);
    return answer === "T";
  }

  async release(domid: Domid): Promise<void> {
    await this.#ofDomain("release", XS.RELEASE, domid);
  }

  async resume(domid: Domid): Promise<void> {
    await this.#ofDomain("resume", XS.RESUME, domid);
  }

  domainPath(domid: Domid): Promise<string> {
    return this.#ofDomain("find the path of", XS.GET_DOMAIN_PATH, domid);
  }

  async #ofDomain(verb: string, type: number, domid: Domid): Promise<string> {
    const answer = await this.#connection.request(`${verb} domain ${domid}`, type, encodeStrings(String(domid)));
    return decodeStrings(answer)[0] ?? "";
  }

  [Symbol.asyncDispose](): Promise<void> {
    this.#watches.clear();
    return this.#connection[Symbol.asyncDispose]();
  }
}
