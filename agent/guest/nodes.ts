/** The nodes below a guest's `data/snowflock`, and what a clone is told in them. */

/** Below a domain's own path. All belong to the guest: it may read, write and remove each. */
export const NODES = {
  base: "data/snowflock",
  /** Written by the guest. */
  request: "data/snowflock/request",
  /** Written by the agent. */
  answer: "data/snowflock/answer",
  /** Written by a clone, first of all: its code runs. */
  awake: "data/snowflock/awake",
  /** Written by the guest at boot: `name=address` lines, hexadecimal. */
  symbols: "data/snowflock/symbols",
} as const;

/** The path of a domain's own part of xenstore. */
export function domainPath(domid: number): string {
  return `/local/domain/${domid}`;
}

/** What a clone learns when it wakes up. Each value is one line under 256 bytes; that is what `sf` can read. */
export interface CloneIdentity {
  readonly id: number;
  readonly ticket: string;
  readonly family: string;
  readonly name: string;
  readonly uuid: string;
  /** Address with prefix length, `10.77.0.4/16`; absent where the guest has no network of ours. */
  readonly address?: string;
  readonly mac?: string;
  readonly gateway?: string;
  /** Default: `name`, reduced to what a host name may hold. */
  readonly hostname?: string;
  /** 64 random bytes for its random generator, never used twice. */
  readonly seed: Uint8Array;
}

/** The nodes that tell a clone who it is: path below the domain's own to value. To be written before it starts. */
export function identityNodes(identity: CloneIdentity): Record<string, string> {
  if (identity.seed.length !== 64) throw new RangeError("A seed is 64 bytes");
  const values: Record<string, string | undefined> = {
    id: String(identity.id),
    ticket: identity.ticket,
    family: identity.family,
    name: identity.name,
    uuid: identity.uuid,
    address: identity.address,
    mac: identity.mac,
    gateway: identity.gateway,
    hostname: identity.hostname ?? hostName(identity.name),
    seed: identity.seed.toHex(),
  };
  const nodes: Record<string, string> = {};
  for (const [name, value] of Object.entries(values)) {
    if (value === undefined) continue;
    // deno-lint-ignore no-control-regex -- control characters are what is looked for
    if (/[\x00-\x1f]/.test(value) || new TextEncoder().encode(value).length > 255) {
      throw new RangeError(`A clone's ${name} must be one line under 256 bytes`);
    }
    nodes[`${NODES.base}/${name}`] = value;
  }
  return nodes;
}

/** `text` as a label of RFC 1123: letters, digits and hyphens, 1..63. */
export function hostName(text: string): string {
  return text.replaceAll(/[^A-Za-z0-9-]+/g, "-").slice(0, 63).replaceAll(/^-+|-+$/g, "") || "clone";
}

/** Symbols of the guest's kernel that the search for its free memory needs. */
export const KERNEL_SYMBOLS = [
  "__start_BTF",
  "__stop_BTF",
  "node_data",
  "vmemmap_base",
  "page_offset_base",
  "phys_base",
  "init_top_pgt",
] as const;

export type KernelSymbol = typeof KERNEL_SYMBOLS[number];

/**
 * Reads the `symbols` node. What is not understood is left out: the guest's word is a hint, and whoever uses an address checks
 * what is there.
 */
export function parseSymbols(value: Uint8Array): Map<KernelSymbol, bigint> {
  const symbols = new Map<KernelSymbol, bigint>();
  const text = new TextDecoder().decode(value.subarray(0, 1024));
  for (const line of text.split("\n")) {
    const [, name, address = ""] = /^(\w{1,32})=(?:0x)?([0-9a-f]{1,16})$/.exec(line.trim()) ?? [];
    const symbol = KERNEL_SYMBOLS.find((known) => known === name);
    if (symbol !== undefined) symbols.set(symbol, BigInt(`0x${address}`));
  }
  return symbols;
}
