/** Rule sets of nftables as data: written out for one `nft -f` transaction, and compared with what the kernel holds after. */
import { type JsonObject, objectOf, textOf } from "./commands.ts";

export interface Chain {
  readonly name: string;
  /** `type filter hook input priority 0; policy drop;`; none for a chain that is only jumped to. */
  readonly hook?: string;
  readonly rules: readonly string[];
}

export interface Table {
  readonly family: "netdev" | "bridge" | "inet";
  readonly name: string;
  /** Declarations before the chains: sets, limits. */
  readonly objects?: readonly string[];
  readonly chains: readonly Chain[];
}

export function renderTable(table: Table): string {
  const chains = table.chains.map(({ name, hook, rules }) =>
    [`  chain ${name} {`, ...[...(hook === undefined ? [] : [hook]), ...rules].map((line) => `    ${line}`), "  }"]
      .join("\n")
  );
  const objects = (table.objects ?? []).map((object) => `  ${object}`);
  return [`table ${table.family} ${table.name} {`, ...objects, ...chains, "}", ""].join("\n");
}

/**
 * How `listed` (the objects of `nft -j list ruleset` or `list table`) differs from the tables, in words; undefined where it
 * does not: the same tables and chains, and as many rules in each.
 */
export function differenceFrom(tables: readonly Table[], listed: readonly JsonObject[]): string | undefined {
  const expected = new Map<string, number>();
  for (const { family, name, chains } of tables) {
    expected.set(`${family} ${name}`, 0);
    for (const chain of chains) expected.set(`${family} ${name} ${chain.name}`, chain.rules.length);
  }
  const found = new Map<string, number>();
  for (const item of listed) {
    const [kind = "", body] = ["table", "chain", "rule"].flatMap((kind) =>
      kind in item ? [kind, objectOf(item, kind)] : []
    );
    if (typeof kind !== "string" || typeof body !== "object") continue;
    const path = [textOf(body, "family"), kind === "table" ? "" : textOf(body, "table")].filter((part) => part !== "");
    const key = [...path, textOf(body, kind === "rule" ? "chain" : "name")].join(" ");
    found.set(key, (found.get(key) ?? 0) + (kind === "rule" ? 1 : 0));
  }
  for (const [key, count] of expected) {
    if (found.get(key) !== count) return `${key} has ${found.get(key) ?? "no"} rules, not ${count}`;
  }
  for (const key of found.keys()) if (!expected.has(key)) return `${key} should not be there`;
  return undefined;
}

/** Packets that rules with a counter and the comment `blocked` have met, per chain. */
export function blockedPackets(listed: readonly JsonObject[]): Map<string, number> {
  const packets = new Map<string, number>();
  for (const item of listed) {
    const rule = objectOf(item, "rule");
    const chain = textOf(rule, "chain");
    if (chain === undefined || textOf(rule, "comment") !== "blocked" || !Array.isArray(rule.expr)) continue;
    for (const expression of rule.expr) {
      const count = objectOf(expression, "counter").packets;
      if (typeof count === "number") packets.set(chain, (packets.get(chain) ?? 0) + count);
    }
  }
  return packets;
}
