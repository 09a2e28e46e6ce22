import type { Permission, Xenstore } from "../../hypercall/xenstore/mod.ts";

/** What the fork code needs of xenstore. Paths are absolute. */
export type Store = Pick<
  Xenstore,
  "read" | "write" | "remove" | "list" | "setPermissions" | "watch" | "introduce" | "resume"
>;
export type StorePermission = Permission;

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
