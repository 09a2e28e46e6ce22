/** What the fork code needs of xenstore: a part of the client in `hypercall/xenstore/`. Paths are absolute. */
export interface Store {
  /** The value, or undefined where there is no such node. */
  read(path: string): Promise<string | undefined>;
  write(path: string, value: string): Promise<void>;
  /** Removes a node and all below it; nothing happens where there is none. */
  remove(path: string): Promise<void>;
  /** Names of the nodes below; none where there is no such node. */
  list(path: string): Promise<string[]>;
  setPermissions(path: string, permissions: readonly StorePermission[]): Promise<void>;
  /** Calls `onEvent` once at once and then after each change at or below `path`. */
  watch(path: string, onEvent: (path: string) => void): Promise<AsyncDisposable>;
  introduce(domid: number, gfn: bigint, port: number): Promise<void>;
  /** Clears xenstored's mark that the domain has shut down. */
  resume(domid: number): Promise<void>;
}

/** The first permission of a node names its owner, and what everybody else may do. */
export interface StorePermission {
  readonly domid: number;
  readonly access: "none" | "read" | "write" | "both";
}

/** A directory of the tree, ready to be written: nodes with their values and their permissions. */
export interface StoreNode {
  readonly path: string;
  readonly value: string;
  readonly permissions: readonly StorePermission[];
}

/** Writes nodes in order; parents before what is below them. */
export async function writeNodes(store: Store, nodes: readonly StoreNode[]): Promise<void> {
  // The requests are sent without waiting for each answer; xenstored performs a connection's requests in order.
  await Promise.all(nodes.flatMap(({ path, value, permissions }) => [
    store.write(path, value),
    store.setPermissions(path, permissions),
  ]));
}
