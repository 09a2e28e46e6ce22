/** What xenstored does for each request (tools/xenstore/xenstored_core.c, xenstored_watch.c, xenstored_transaction.c). */
import { XENSTORE_PAYLOAD_MAX, XS } from "../../../hypercall/abi/mod.ts";
import type { Domid } from "../../../hypercall/ports.ts";
import { decodeStrings, encodeStrings } from "../../../hypercall/xenstore/wire.ts";
import {
  absolutePath,
  checkedNode,
  may,
  nodeBytes,
  nodesOwnedBy,
  owns,
  parsePermissions,
  permissionTexts,
  StoreFailure,
} from "./access.ts";
import type { StoreConnection, Transaction } from "./connection.ts";
import type { SimXenstore } from "./server.ts";
import { find, nearest, parentOf, partsOf, place, type StoreNode, walk } from "./tree.ts";

/** public/io/xs_wire.h. A guest's kernel sends it when it starts. */
const XS_RESET_WATCHES = 21;
const OK = encodeStrings("OK");

/** One request within its view of the tree: the real one, or a transaction's. */
export class Request {
  constructor(
    readonly store: SimXenstore,
    readonly connection: StoreConnection,
    readonly transaction: Transaction | undefined,
    readonly payload: Uint8Array,
  ) {}

  get domid(): number {
    return this.connection.domid;
  }

  get root(): StoreNode {
    return this.transaction?.root ?? this.store.root;
  }

  get strings(): string[] {
    return decodeStrings(this.payload);
  }

  /** The payload's first string, as an absolute path. */
  get path(): string {
    const [path] = this.strings;
    if (path === undefined || !this.payload.includes(0)) throw new StoreFailure("EINVAL");
    return absolutePath(path, this.domid);
  }

  accessed(path: string): void {
    const { transaction } = this;
    if (transaction === undefined || transaction.accessed.has(path)) return;
    transaction.accessed.set(path, find(transaction.base, path)?.generation ?? -1);
  }

  node(path: string, wanted: "read" | "write"): StoreNode {
    this.accessed(path);
    return checkedNode(this.root, path, this.domid, wanted);
  }

  change(change: (root: StoreNode) => StoreNode, path: string, removed?: StoreNode): void {
    const { transaction } = this;
    if (transaction === undefined) {
      this.store.root = change(this.store.root);
      this.store.fire(path, removed);
      return;
    }
    transaction.root = change(transaction.root);
    transaction.changes.push(change);
    transaction.events.push({ path, removed });
  }

  /** Makes the node, and those above it that are missing, or gives it another value. */
  write(path: string, value: Uint8Array): void {
    const existing = find(this.root, path);
    const { domid } = this;
    this.accessed(path);
    if (existing !== undefined) {
      if (!may(domid, existing, "write")) throw new StoreFailure("EACCES");
      this.#checkSize({ ...existing, value });
      const generation = this.store.nextGeneration();
      return this.change((root) => {
        const node = find(root, path);
        return node === undefined ? root : place(root, path, { ...node, value, generation }, generation);
      }, path);
    }
    const above = nearest(this.root, path);
    this.accessed(above.path);
    if (!may(domid, above.node, "write")) throw new StoreFailure("EACCES");
    const names = partsOf(path).slice(partsOf(above.path).length);
    // Permissions are inherited, but a guest owns what it makes.
    const inherited = above.node.permissions.map((permission, index) =>
      domid !== 0 && index === 0 ? { ...permission, domid: domid as Domid } : permission
    );
    if (domid !== 0 && nodesOwnedBy(this.root, domid) + names.length > this.store.quotas.nodes) {
      throw new StoreFailure("ENOSPC");
    }
    const generation = this.store.nextGeneration();
    const leaf: StoreNode = { value, permissions: inherited, children: new Map(), generation };
    this.#checkSize(leaf);
    this.change((root) => {
      let at = above.path;
      for (const [index, name] of names.entries()) {
        at = at === "/" ? `/${name}` : `${at}/${name}`;
        const node = index === names.length - 1 ? leaf : { ...leaf, value: new Uint8Array(0) };
        if (find(root, at) === undefined || index === names.length - 1) root = place(root, at, node, generation);
      }
      return root;
    }, path);
  }

  #checkSize(node: StoreNode): void {
    if (this.domid !== 0 && nodeBytes(node) > this.store.quotas.nodeBytes) throw new StoreFailure("ENOSPC");
  }
}

export type Handler = (request: Request) => Uint8Array;

export const HANDLERS: ReadonlyMap<number, Handler> = new Map<number, Handler>([
  [XS.READ, (request) => request.node(request.path, "read").value],
  [XS.WRITE, (request) => {
    const { path, payload } = request;
    request.write(path, payload.slice(payload.indexOf(0) + 1));
    return OK;
  }],
  [XS.MKDIR, (request) => {
    const { path } = request;
    if (find(request.root, path) === undefined) request.write(path, new Uint8Array(0));
    else request.node(path, "write");
    return OK;
  }],
  [XS.RM, remove],
  [XS.DIRECTORY, (request) => {
    const names = encodeStrings(...request.node(request.path, "read").children.keys());
    if (names.byteLength > XENSTORE_PAYLOAD_MAX) throw new StoreFailure("E2BIG");
    return names;
  }],
  [XS.DIRECTORY_PART, directoryPart],
  [XS.GET_PERMS, (request) => encodeStrings(...permissionTexts(request.node(request.path, "read").permissions))],
  [XS.SET_PERMS, setPermissions],
  [XS.WATCH, watch],
  [XS.UNWATCH, (request) => {
    const [path = "", token = ""] = request.strings;
    const { watches } = request.connection;
    const index = watches.findIndex((one) => one.given === path && one.token === token);
    if (index < 0) throw new StoreFailure("ENOENT");
    watches.splice(index, 1);
    return OK;
  }],
  [XS_RESET_WATCHES, (request) => {
    request.connection.watches.length = 0;
    request.connection.transactions.clear();
    return OK;
  }],
  [
    XS.TRANSACTION_START,
    (request) => encodeStrings(String(request.store.begin(request.connection, request.transaction))),
  ],
  [XS.TRANSACTION_END, (request) => {
    const { transaction, connection, store } = request;
    if (transaction === undefined) throw new StoreFailure("ENOENT");
    const [answer] = request.strings;
    if (answer !== "T" && answer !== "F") throw new StoreFailure("EINVAL");
    connection.transactions.delete(transaction.id);
    if (answer === "T") store.commit(transaction);
    return OK;
  }],
  [XS.INTRODUCE, (request) => {
    const [domid, gfn, port] = dom0Numbers(request, 3);
    request.store.introduce(domid ?? 0, gfn ?? 0, port ?? 0);
    return OK;
  }],
  [XS.RELEASE, (request) => {
    const [domid = 0] = dom0Numbers(request, 1);
    request.store.release(domid);
    return OK;
  }],
  [XS.RESUME, (request) => {
    const [domid = 0] = dom0Numbers(request, 1);
    request.store.resume(domid);
    return OK;
  }],
  [XS.IS_DOMAIN_INTRODUCED, (request) => {
    const domid = number(request.strings[0]);
    return encodeStrings(domid === 0 || request.store.isIntroduced(domid) ? "T" : "F");
  }],
  [XS.GET_DOMAIN_PATH, (request) => encodeStrings(`/local/domain/${number(request.strings[0])}`)],
]);

function number(text: string | undefined): number {
  if (text === undefined || !/^\d{1,15}$/.test(text)) throw new StoreFailure("EINVAL");
  return Number(text);
}

function dom0Numbers(request: Request, count: number): number[] {
  if (request.domid !== 0) throw new StoreFailure("EACCES");
  const { strings } = request;
  if (strings.length < count) throw new StoreFailure("EINVAL");
  return strings.slice(0, count).map(number);
}

function remove(request: Request): Uint8Array {
  const { path } = request;
  if (path === "/") throw new StoreFailure("EINVAL");
  const node = find(request.root, path);
  if (node === undefined) {
    request.accessed(path);
    // Already gone is fine as long as its parent is there.
    if (find(request.root, parentOf(path)) === undefined) throw new StoreFailure("ENOENT");
    return OK;
  }
  request.node(path, "write");
  request.accessed(parentOf(path));
  const generation = request.store.nextGeneration();
  request.change(
    (root) => find(root, path) === undefined ? root : place(root, path, undefined, generation),
    path,
    node,
  );
  return OK;
}

/** "Generation, then names from this offset on"; an empty string ends the last part. */
function directoryPart(request: Request): Uint8Array {
  const node = request.node(request.path, "read");
  const offset = number(request.strings[1]);
  const names = encodeStrings(...node.children.keys());
  const head = encodeStrings(String(node.generation));
  const room = XENSTORE_PAYLOAD_MAX - head.byteLength;
  let end = Math.min(offset + room - 1, names.byteLength);
  // Whole names only.
  if (end < names.byteLength) end = names.lastIndexOf(0, end - 1) + 1;
  const last = end >= names.byteLength;
  const part = new Uint8Array(head.byteLength + Math.max(end - offset, 0) + (last ? 1 : 0));
  part.set(head);
  part.set(names.subarray(offset, end), head.byteLength);
  return part;
}

function setPermissions(request: Request): Uint8Array {
  const { path, domid } = request;
  const node = request.node(path, "write");
  if (!owns(domid, node)) throw new StoreFailure("EACCES");
  const permissions = parsePermissions(request.strings.slice(1));
  // A guest may not give its nodes, and what they count, to another.
  if (domid !== 0 && permissions[0]?.domid !== domid) throw new StoreFailure("EPERM");
  const generation = request.store.nextGeneration();
  request.change((root) => {
    const current = find(root, path);
    return current === undefined ? root : place(root, path, { ...current, permissions, generation }, generation);
  }, path);
  return OK;
}

function watch(request: Request): Uint8Array {
  const { connection, domid, strings } = request;
  const [given, token] = strings;
  if (given === undefined || token === undefined) throw new StoreFailure("EINVAL");
  const special = given.startsWith("@");
  if (special && domid !== 0) throw new StoreFailure("EACCES");
  const path = special ? given : absolutePath(given, domid);
  if (connection.watches.some((one) => one.path === path && one.token === token)) throw new StoreFailure("EEXIST");
  if (domid !== 0 && connection.watches.length >= request.store.quotas.watches) throw new StoreFailure("E2BIG");
  const added = { given, path, token };
  connection.watches.push(added);
  // The first event, whether or not the node is there. The answer goes out before it.
  request.store.afterAnswer(() => request.store.sendEvent(connection, added, path));
  return OK;
}

/** Paths below a node that went, each with its node. */
export function removedPaths(path: string, node: StoreNode): Map<string, StoreNode> {
  const paths = new Map<string, StoreNode>();
  walk(node, path, (at, one) => paths.set(at, one));
  return paths;
}
