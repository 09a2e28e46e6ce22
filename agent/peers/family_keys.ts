/** Keys that families' pages are sealed with. The host where a family began makes its key; all others learn it from a fork. */
import { randomBytes } from "node:crypto";
import type { FamilyChannel } from "../memory/exchange.ts";
import type { MemoryCalls } from "../memory/calls.ts";
import type { PageChannel } from "../fork/clone_host.ts";
import { PeerError } from "./wire.ts";

/** Families that are remembered. A family that is served has far fewer hosts and forks than it takes to push it out. */
const MAX_FAMILIES = 100_000;

export class FamilyKeys {
  readonly #keys = new Map<string, string>();

  /** The family's key, in hexadecimal; made where it is not known. */
  of(family: string): string {
    const key = this.#keys.get(family) ?? randomBytes(32).toString("hex");
    this.#put(family, key);
    return key;
  }

  /** Throws a {@link PeerError} if the family has another key here. */
  learn(family: string, key: string): void {
    const known = this.#keys.get(family);
    if (known !== undefined && known !== key) throw new PeerError("bad-message", "The family has another key here");
    this.#put(family, key);
  }

  #put(family: string, key: string): void {
    // The least recently used goes first.
    this.#keys.delete(family);
    this.#keys.set(family, key);
    for (const oldest of this.#keys.keys()) {
      if (this.#keys.size <= MAX_FAMILIES) break;
      this.#keys.delete(oldest);
    }
  }
}

/** Lets other hosts have a snapshot of this host, and says how they get its pages from `server`. */
export function sharer(
  keys: FamilyKeys,
  memory: Pick<MemoryCalls, "serveSnapshot">,
  mode: FamilyChannel["mode"],
  server: string,
): (snapshot: string, family: string) => Promise<PageChannel> {
  return async (snapshot, family) => {
    const channel: FamilyChannel = { family, key: keys.of(family), mode };
    await memory.serveSnapshot(snapshot, channel);
    return { ...channel, server };
  };
}
