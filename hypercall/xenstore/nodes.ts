/** Reading and writing nodes: the same calls inside a transaction and outside. */
import { XENSTORE_ABS_PATH_MAX, XENSTORE_REL_PATH_MAX, XS } from "../abi/mod.ts";
import { DOMID_FIRST_RESERVED } from "../abi/mod.ts";
import type { Domid } from "../ports.ts";
import type { Connection } from "./connection.ts";
import { XenstoreError } from "./errors.ts";
import { concatenate, decodeStrings, decodeText, encodeStrings } from "./wire.ts";

export type Access = "none" | "read" | "write" | "both";

/** The first of a node's permissions names its owner, who may do everything, and what those may who are not named. */
export interface Permission {
  readonly domid: Domid;
  readonly access: Access;
}

/** What can be done with nodes. Paths are absolute, or relative to the caller's own `/local/domain/N`. Errors are {@link XenstoreError}s. */
export interface XenstoreNodes {
  /** The value, or undefined for a node that is not there. Bytes that are not UTF-8 are replaced. */
  read(path: string): Promise<string | undefined>;
  readBytes(path: string): Promise<Uint8Array | undefined>;
  /** Makes missing parents too. E2BIG where path and value together are over 4096 bytes. */
  write(path: string, value: string | Uint8Array): Promise<void>;
  mkdir(path: string): Promise<void>;
  /** With all below it. A node that is not there is no error. */
  remove(path: string): Promise<void>;
  /** Names of the children, or undefined for a node that is not there. E2BIG beyond 1 MiB of names. */
  list(path: string): Promise<string[] | undefined>;
  getPermissions(path: string): Promise<Permission[]>;
  setPermissions(path: string, permissions: readonly Permission[]): Promise<void>;
}

/** Of all names in a directory. */
const LIST_BYTES_MAX = 1024 * 1024;
/** How often a directory that changes while it is listed in parts is begun again. */
const LIST_ATTEMPTS = 16;

const LETTERS: ReadonlyMap<string, Access> = new Map([["n", "none"], ["r", "read"], ["w", "write"], ["b", "both"]]);
const LETTER_OF: Readonly<Record<Access, string>> = { none: "n", read: "r", write: "w", both: "b" };

export class Nodes implements XenstoreNodes {
  readonly #connection: Connection;
  readonly #transactionId: number;

  constructor(connection: Connection, transactionId = 0) {
    this.#connection = connection;
    this.#transactionId = transactionId;
  }

  async read(path: string): Promise<string | undefined> {
    const bytes = await this.readBytes(path);
    return bytes === undefined ? undefined : decodeText(bytes);
  }

  readBytes(path: string): Promise<Uint8Array | undefined> {
    return absentAsUndefined(this.#ask(`read ${path}`, XS.READ, path));
  }

  async write(path: string, value: string | Uint8Array): Promise<void> {
    const bytes = typeof value === "string" ? new TextEncoder().encode(value) : value;
    await this.#ask(`write ${path}`, XS.WRITE, path, bytes);
  }

  async mkdir(path: string): Promise<void> {
    await this.#ask(`make ${path}`, XS.MKDIR, path);
  }

  async remove(path: string): Promise<void> {
    await absentAsUndefined(this.#ask(`remove ${path}`, XS.RM, path));
  }

  async list(path: string): Promise<string[] | undefined> {
    try {
      const names = await absentAsUndefined(this.#ask(`list ${path}`, XS.DIRECTORY, path));
      return names === undefined ? undefined : decodeStrings(names);
    } catch (error) {
      if (!(error instanceof XenstoreError && error.code === "E2BIG")) throw error;
      return await this.#listParts(path);
    }
  }

  async getPermissions(path: string): Promise<Permission[]> {
    const operation = `read the permissions of ${path}`;
    const answer = await this.#ask(operation, XS.GET_PERMS, path);
    return decodeStrings(answer).map((text) => {
      const access = LETTERS.get(text.slice(0, 1));
      const domid = text.slice(1);
      if (access === undefined || !/^\d{1,5}$/.test(domid)) throw new XenstoreError(operation, "EIO");
      return { domid: Number(domid) as Domid, access };
    });
  }

  async setPermissions(path: string, permissions: readonly Permission[]): Promise<void> {
    const operation = `set the permissions of ${path}`;
    if (permissions.length === 0) throw new XenstoreError(operation, "EINVAL");
    for (const { domid } of permissions) {
      if (!Number.isInteger(domid) || domid < 0 || domid >= DOMID_FIRST_RESERVED) {
        throw new XenstoreError(`${operation} for domain ${domid}`, "EINVAL");
      }
    }
    const texts = permissions.map(({ domid, access }) => `${LETTER_OF[access]}${domid}`);
    await this.#ask(operation, XS.SET_PERMS, path, encodeStrings(...texts));
  }

  /** For a directory whose names are over 4096 bytes: parts, of one generation of the directory. */
  async #listParts(path: string): Promise<string[]> {
    const operation = `list ${path}`;
    let generation: string | undefined;
    let names: string[] = [];
    let offset = 0;
    for (let attempts = 0; attempts < LIST_ATTEMPTS;) {
      const part = await this.#ask(operation, XS.DIRECTORY_PART, path, encodeStrings(String(offset)));
      const end = part.indexOf(0);
      if (end < 0) throw new XenstoreError(operation, "EIO");
      const partGeneration = decodeText(part.subarray(0, end));
      if (generation !== undefined && partGeneration !== generation) {
        generation = undefined;
        names = [];
        offset = 0;
        attempts++;
        continue;
      }
      generation = partGeneration;
      const list = part.subarray(end + 1);
      const found = decodeText(list).split("\0").slice(0, -1);
      // An empty name ends the list.
      const last = found.indexOf("");
      names.push(...(last < 0 ? found : found.slice(0, last)));
      if (last >= 0) return names;
      offset += list.byteLength;
      if (list.byteLength === 0) throw new XenstoreError(operation, "EIO");
      if (offset > LIST_BYTES_MAX) throw new XenstoreError(operation, "E2BIG");
    }
    throw new XenstoreError(operation, "EAGAIN");
  }

  async #ask(operation: string, type: number, path: string, rest?: Uint8Array): Promise<Uint8Array> {
    checkPath(operation, path);
    const head = encodeStrings(path);
    const payload = rest === undefined ? head : concatenate(head, rest);
    return await this.#connection.request(operation, type, payload, this.#transactionId);
  }
}

/** As xenstored checks it (docs/misc/xenstore.txt), with the operation named. */
export function checkPath(operation: string, path: string): void {
  const limit = path.startsWith("/") ? XENSTORE_ABS_PATH_MAX : XENSTORE_REL_PATH_MAX;
  if (path.length > limit) throw new XenstoreError(`${operation.slice(0, 80)}...`, "E2BIG");
  const valid = path === "/" || (/^[-/_@A-Za-z0-9]+$/.test(path) && !path.endsWith("/") && !path.includes("//"));
  if (!valid) throw new XenstoreError(operation, "EINVAL");
}

async function absentAsUndefined<T>(answer: Promise<T>): Promise<T | undefined> {
  try {
    return await answer;
  } catch (error) {
    if (error instanceof XenstoreError && error.code === "ENOENT") return undefined;
    throw error;
  }
}
