/** xenstored's nodes, as a tree that is never changed in place: a transaction keeps the root that it saw. */
import type { Permission } from "../../../hypercall/xenstore/mod.ts";

export interface StoreNode {
  readonly value: Uint8Array;
  /** The first names the owner, and what those may who are not named. */
  readonly permissions: readonly Permission[];
  readonly children: ReadonlyMap<string, StoreNode>;
  /** Changes with the value, the permissions, or the list of children; not with what is in a child. */
  readonly generation: number;
}

export function partsOf(path: string): string[] {
  return path === "/" ? [] : path.slice(1).split("/");
}

export function parentOf(path: string): string {
  const end = path.lastIndexOf("/");
  return end <= 0 ? "/" : path.slice(0, end);
}

export function find(root: StoreNode, path: string): StoreNode | undefined {
  let node: StoreNode | undefined = root;
  for (const part of partsOf(path)) node = node?.children.get(part);
  return node;
}

/** The node itself if it is there, else the nearest one above it. */
export function nearest(root: StoreNode, path: string): { readonly path: string; readonly node: StoreNode } {
  for (let at = path;; at = parentOf(at)) {
    const node = find(root, at);
    if (node !== undefined) return { path: at, node };
    if (at === "/") throw new Error("the simulator's xenstore has no root");
  }
}

/** The tree with this node in this place; undefined removes it with all below it. Its parent must be there. */
export function place(root: StoreNode, path: string, node: StoreNode | undefined, generation: number): StoreNode {
  return placeParts(root, partsOf(path), node, generation);
}

function placeParts(
  root: StoreNode,
  [head, ...rest]: readonly string[],
  node: StoreNode | undefined,
  generation: number,
): StoreNode {
  if (head === undefined) return node ?? root;
  const children = new Map(root.children);
  const child = children.get(head);
  if (rest.length > 0) {
    if (child === undefined) throw new Error(`the simulator's xenstore has no parent for ${head}`);
    children.set(head, placeParts(child, rest, node, generation));
    return { ...root, children };
  }
  if (node === undefined) children.delete(head);
  else children.set(head, node);
  const listChanged = (child === undefined) !== (node === undefined);
  return { ...root, children, generation: listChanged ? generation : root.generation };
}

/** Calls back for the node and all below it. */
export function walk(node: StoreNode, path: string, visit: (path: string, node: StoreNode) => void): void {
  visit(path, node);
  for (const [name, child] of node.children) walk(child, path === "/" ? `/${name}` : `${path}/${name}`, visit);
}
