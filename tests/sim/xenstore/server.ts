/** A simulated xenstored: C xenstored's behaviour on the wire protocol, without its ring to guests. */
import { XS } from "../../../hypercall/abi/mod.ts";
import type { Domid } from "../../../hypercall/ports.ts";
import { errorCodeOf, type XenstoreErrorCode } from "../../../hypercall/xenstore/errors.ts";
import type { XenstoreTransport } from "../../../hypercall/xenstore/mod.ts";
import { encodeStrings, type Message } from "../../../hypercall/xenstore/wire.ts";
import type { Frame } from "../frames.ts";
import type { SimMachine } from "../machine.ts";
import type { SimXen } from "../sim_xen.ts";
import { DEFAULT_QUOTAS, mayKnow, nodesOwnedBy, type Quotas, StoreFailure } from "./access.ts";
import { StoreConnection, type Transaction, type Watch } from "./connection.ts";
import { HANDLERS, removedPaths, Request } from "./requests.ts";
import { find, type StoreNode } from "./tree.ts";

interface Introduced {
  readonly frame: Frame;
  readonly port: number;
  shutdown: boolean;
}

export class SimXenstore {
  root: StoreNode;
  readonly quotas: Quotas;
  readonly #xen: SimXen;
  readonly #connections = new Set<StoreConnection>();
  readonly #introduced = new Map<number, Introduced>();
  #generation = 0;
  #nextTransaction = 1;
  #after: (() => void)[] = [];

  constructor(xen: SimXen, quotas: Partial<Quotas> = {}) {
    this.#xen = xen;
    this.quotas = { ...DEFAULT_QUOTAS, ...quotas };
    const empty = { value: new Uint8Array(0), permissions: [{ domid: 0 as Domid, access: "none" as const }] };
    this.root = { ...empty, children: new Map(), generation: this.nextGeneration() };
    xen.onDomainException(() => this.#domainException());
  }

  nextGeneration(): number {
    return ++this.#generation;
  }

  /** dom0's connection for a process: its requests are steps of the process, and it is closed when the process ends. */
  connect(machine: SimMachine): XenstoreTransport {
    machine.checkAlive();
    const handle = (connection: StoreConnection, message: Message) => {
      const failed = (code: string) => this.#answerError(connection, message, errorCodeOf(code));
      machine.step(`xenstore.${nameOf(message.type)}`, () => this.#handle(connection, message), failed);
    };
    const connection = this.#open(0, handle, () => held[Symbol.dispose]());
    const held = machine.hold({ [Symbol.dispose]: () => connection.close() });
    return connection.transport;
  }

  /** A connection that belongs to no simulated process: xl, or a test. */
  connectToolstack(): StoreConnection {
    return this.#open(0, (connection, message) => this.#handle(connection, message));
  }

  /** A guest's: there must be an introduction. It ends with the domain. */
  connectGuest(domid: number): StoreConnection {
    if (!this.#introduced.has(domid)) throw new Error(`xenstored knows no domain ${domid}`);
    return this.#open(domid, (connection, message) => this.#handle(connection, message));
  }

  #open(
    domid: number,
    handle: (connection: StoreConnection, message: Message) => void,
    onClose: () => void = () => {},
  ): StoreConnection {
    const connection = new StoreConnection(domid, handle, (closed) => {
      this.#connections.delete(closed);
      onClose();
    });
    this.#connections.add(connection);
    return connection;
  }

  #handle(connection: StoreConnection, message: Message): void {
    const handler = HANDLERS.get(message.type);
    try {
      if (handler === undefined) throw new StoreFailure("ENOSYS");
      const transaction = this.#transactionOf(connection, message.transactionId);
      const payload = handler(new Request(this, connection, transaction, message.payload));
      connection.emit({ ...message, payload });
    } catch (error) {
      if (!(error instanceof StoreFailure)) throw error;
      this.#answerError(connection, message, error.code);
    }
    const after = this.#after;
    this.#after = [];
    for (const action of after) action();
  }

  #transactionOf(connection: StoreConnection, id: number): Transaction | undefined {
    if (id === 0) return undefined;
    const transaction = connection.transactions.get(id);
    if (transaction === undefined) throw new StoreFailure("ENOENT");
    return transaction;
  }

  #answerError(connection: StoreConnection, message: Message, code: XenstoreErrorCode): void {
    connection.emit({ ...message, type: XS.ERROR, payload: encodeStrings(code) });
  }

  afterAnswer(action: () => void): void {
    this.#after.push(action);
  }

  begin(connection: StoreConnection, outer: Transaction | undefined): number {
    if (outer !== undefined) throw new StoreFailure("EBUSY");
    if (connection.domid !== 0 && connection.transactions.size >= this.quotas.transactions) {
      throw new StoreFailure("ENOSPC");
    }
    const id = this.#nextTransaction++;
    const transaction = { id, base: this.root, root: this.root, accessed: new Map(), changes: [], events: [] };
    connection.transactions.set(id, transaction);
    return id;
  }

  /** EAGAIN if anything that the transaction looked at has changed meanwhile. */
  commit(transaction: Transaction): void {
    for (const [path, generation] of transaction.accessed) {
      if ((find(this.root, path)?.generation ?? -1) !== generation) throw new StoreFailure("EAGAIN");
    }
    for (const change of transaction.changes) this.root = change(this.root);
    for (const { path, removed } of transaction.events) this.fire(path, removed);
  }

  /** Tells whoever watches the node or one above it; of a node that went, those who watch below it too. */
  fire(path: string, removed?: StoreNode): void {
    const node = removed ?? find(this.root, path);
    if (node === undefined) return;
    const below = removed === undefined ? undefined : removedPaths(path, removed);
    for (const connection of [...this.#connections]) {
      for (const watch of [...connection.watches]) {
        if (isAtOrBelow(path, watch.path)) {
          if (mayKnow(this.root, path, node, connection.domid)) this.sendEvent(connection, watch, path);
          continue;
        }
        const gone = below?.get(watch.path);
        if (gone !== undefined && mayKnow(this.root, watch.path, gone, connection.domid)) {
          this.sendEvent(connection, watch, watch.path);
        }
      }
    }
  }

  sendEvent(connection: StoreConnection, watch: Watch, path: string): void {
    const own = `/local/domain/${connection.domid}/`;
    const relative = !watch.given.startsWith("/") && !watch.given.startsWith("@") && path.startsWith(own);
    const payload = encodeStrings(relative ? path.slice(own.length) : path, watch.token);
    connection.emit({ type: XS.WATCH_EVENT, requestId: 0, transactionId: 0, payload });
  }

  #fireSpecial(name: "@introduceDomain" | "@releaseDomain"): void {
    for (const connection of [...this.#connections]) {
      for (const watch of connection.watches) if (watch.path === name) this.sendEvent(connection, watch, name);
    }
  }

  /** Maps the guest's ring by grant reference 1 (the gfn is ignored, as C xenstored does) and binds its port. */
  introduce(domid: number, _gfn: number, port: number): void {
    const domain = this.#xen.find(domid);
    if (domain === undefined || domain.dying || port === 0) throw new StoreFailure("EINVAL");
    const granted = domain.grants.resolve(1, 0, true);
    if (!("frame" in granted)) throw new StoreFailure("EINVAL");
    const old = this.#introduced.get(domid);
    if (old !== undefined) this.#xen.eventChannels.close(0, old.port);
    const local = this.#xen.eventChannels.bindInterdomain(0, domid, port);
    if (local < 0) throw new StoreFailure("EINVAL");
    granted.frame.retain();
    old?.frame.release();
    this.#introduced.set(domid, { frame: granted.frame, port: local, shutdown: old?.shutdown ?? false });
    if (old === undefined) this.#fireSpecial("@introduceDomain");
  }

  isIntroduced(domid: number): boolean {
    return this.#introduced.has(domid);
  }

  release(domid: number): void {
    if (!this.#introduced.has(domid)) throw new StoreFailure("ENOENT");
    this.#drop(domid);
    this.#fireSpecial("@releaseDomain");
  }

  /** Forgets that the domain has shut down, so that its next shutdown is announced. */
  resume(domid: number): void {
    const introduced = this.#introduced.get(domid);
    if (introduced === undefined) throw new StoreFailure("ENOENT");
    introduced.shutdown = false;
  }

  #drop(domid: number): void {
    const introduced = this.#introduced.get(domid);
    if (introduced === undefined) return;
    this.#introduced.delete(domid);
    for (const connection of [...this.#connections]) if (connection.domid === domid) connection.close();
    this.#xen.eventChannels.close(0, introduced.port);
    introduced.frame.release();
  }

  /** VIRQ_DOM_EXC: looks which of its domains ended or shut down. */
  #domainException(): void {
    let changed = false;
    for (const [domid, introduced] of [...this.#introduced]) {
      const domain = this.#xen.find(domid);
      if (domain === undefined || domain.dying) {
        this.#drop(domid);
        changed = true;
      } else if (domain.shutdownCode !== undefined && !introduced.shutdown) {
        introduced.shutdown = true;
        changed = true;
      }
    }
    if (changed) this.#fireSpecial("@releaseDomain");
  }

  /** For tests: a node's value as text, undefined where there is none. */
  valueAt(path: string): string | undefined {
    const node = find(this.root, path);
    return node && new TextDecoder().decode(node.value);
  }

  /** For tests: the names below a node. */
  namesAt(path: string): string[] {
    return [...find(this.root, path)?.children.keys() ?? []];
  }

  nodesOwnedBy(domid: number): number {
    return nodesOwnedBy(this.root, domid);
  }

  get openConnections(): number {
    return this.#connections.size;
  }
}

function isAtOrBelow(path: string, watched: string): boolean {
  return watched === "/" || path === watched || path.startsWith(`${watched}/`);
}

function nameOf(type: number): string {
  return Object.entries(XS).find(([, value]) => value === type)?.[0] ?? String(type);
}
