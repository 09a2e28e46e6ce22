/** Who may do what in xenstore, and how much (tools/xenstore/xenstored_core.c). */
import { DOMID_FIRST_RESERVED } from "../../../hypercall/abi/mod.ts";
import type { Domid } from "../../../hypercall/ports.ts";
import type { Access, Permission, XenstoreErrorCode } from "../../../hypercall/xenstore/mod.ts";
import { nearest, parentOf, type StoreNode, walk } from "./tree.ts";

/** An ERROR reply. */
export class StoreFailure extends Error {
  constructor(readonly code: XenstoreErrorCode) {
    super(code);
  }
}

/** What a guest may use; dom0 has no limits. C xenstored's defaults. */
export interface Quotas {
  readonly nodes: number;
  readonly watches: number;
  /** Bytes of a node with its permissions and its children's names. */
  readonly nodeBytes: number;
  readonly transactions: number;
}
export const DEFAULT_QUOTAS: Quotas = { nodes: 1000, watches: 128, nodeBytes: 2048, transactions: 10 };

const LETTERS: Readonly<Record<string, Access>> = { n: "none", r: "read", w: "write", b: "both" };
const LETTER_OF: Readonly<Record<Access, string>> = { none: "n", read: "r", write: "w", both: "b" };

export function parsePermissions(texts: readonly string[]): Permission[] {
  if (texts.length === 0) throw new StoreFailure("EINVAL");
  return texts.map((text) => {
    const access = LETTERS[text.slice(0, 1)];
    const domid = Number(text.slice(1));
    if (access === undefined || !/^\d{1,5}$/.test(text.slice(1)) || domid >= DOMID_FIRST_RESERVED) {
      throw new StoreFailure("EINVAL");
    }
    return { domid: domid as Domid, access };
  });
}

export function permissionTexts(permissions: readonly Permission[]): string[] {
  return permissions.map(({ domid, access }) => `${LETTER_OF[access]}${domid}`);
}

/** dom0 may do everything, the owner everything with its node, others what the node says. */
export function may(domid: number, node: StoreNode, wanted: "read" | "write"): boolean {
  const [owner, ...others] = node.permissions;
  if (domid === 0 || owner === undefined || owner.domid === domid) return domid === 0 || owner?.domid === domid;
  const access = others.find((permission) => permission.domid === domid)?.access ?? owner.access;
  return access === "both" || access === wanted;
}

export function owns(domid: number, node: StoreNode): boolean {
  return domid === 0 || node.permissions[0]?.domid === domid;
}

/** The node, to read or write. Whether a node is there is told only to those who may read where it would be. */
export function checkedNode(root: StoreNode, path: string, domid: number, wanted: "read" | "write"): StoreNode {
  const found = nearest(root, path);
  if (found.path === path) {
    if (!may(domid, found.node, wanted)) throw new StoreFailure("EACCES");
    return found.node;
  }
  throw new StoreFailure(may(domid, found.node, wanted) ? "ENOENT" : "EACCES");
}

/** Whether a watcher may learn of a change of this node. */
export function mayKnow(root: StoreNode, path: string, node: StoreNode, domid: number): boolean {
  return may(domid, node, "read") || may(domid, nearest(root, parentOf(path)).node, "read");
}

export function nodesOwnedBy(root: StoreNode, domid: number): number {
  let count = 0;
  walk(root, "/", (_path, node) => {
    if (node.permissions[0]?.domid === domid) count++;
  });
  return count;
}

/** As the node lies in xenstored's database: head, permissions, value, children's names. */
export function nodeBytes(node: StoreNode): number {
  const HEAD = 16;
  const PERMISSION = 8;
  let names = 0;
  for (const name of node.children.keys()) names += name.length + 1;
  return HEAD + node.permissions.length * PERMISSION + node.value.byteLength + names;
}

/** The absolute form of a path: a guest's relative ones lie below its own. */
export function absolutePath(path: string, domid: number): string {
  const wellFormed = /^[A-Za-z0-9\-/_@]+$/.test(path) && !path.includes("//") && (path === "/" || !path.endsWith("/"));
  if (!wellFormed || path.length > 3072) throw new StoreFailure("EINVAL");
  return path.startsWith("/") ? path : `/local/domain/${domid}/${path}`;
}
