/** The schema as text: for `--help`, the documentation, and editors. */
import { z } from "zod";
import { Config } from "./schema.ts";

interface Node {
  readonly type?: string;
  readonly description?: string;
  readonly default?: unknown;
  readonly enum?: readonly unknown[];
  readonly minimum?: number;
  readonly maximum?: number;
  readonly format?: string;
  readonly properties?: Readonly<Record<string, Node>>;
  readonly items?: Node;
  readonly required?: readonly string[];
}

/** JSON Schema (2020-12) of the config file. */
export function configJsonSchema(): Record<string, unknown> {
  return z.toJSONSchema(Config, { io: "input" });
}

export interface Setting {
  /** `limits.clonesPerTicket`; `cluster.peers[].name` in a list. */
  readonly name: string;
  /** `integer 1..1000`, `pack | spread`, ... */
  readonly type: string;
  readonly description: string;
  /** As JSON; undefined where there is none. */
  readonly default: string | undefined;
  readonly required: boolean;
}

/** Every setting, in the order of the schema. */
export function settings(): readonly Setting[] {
  return [...walk(configJsonSchema() as Node, "")];
}

function* walk(node: Node, prefix: string): Generator<Setting> {
  for (const [key, child] of Object.entries(node.properties ?? {})) {
    const name = `${prefix}${key}`;
    if (child.properties !== undefined) {
      yield* walk(child, `${name}.`);
      continue;
    }
    yield {
      name,
      type: typeOf(child),
      description: child.description ?? "",
      default: child.default === undefined ? undefined : JSON.stringify(child.default),
      required: (node.required ?? []).includes(key),
    };
    if (child.items?.properties !== undefined) yield* walk(child.items, `${name}[].`);
  }
}

function typeOf(node: Node): string {
  if (node.enum !== undefined) return node.enum.map(String).join(" | ");
  const range = node.minimum !== undefined && node.maximum !== undefined ? ` ${node.minimum}..${node.maximum}` : "";
  if (node.type === "array") return "list";
  if (node.format !== undefined) return node.format;
  return `${node.type ?? "value"}${range}`;
}

/** One line a setting, for a terminal. */
export function configHelp(): string {
  const lines = settings().map(({ name, type, description, default: value }) => {
    const standard = value === undefined ? "" : ` [${value}]`;
    return `  ${name.padEnd(30)} ${description} (${type})${standard}`;
  });
  return `Settings (YAML or JSON; a dot is a level):\n${lines.join("\n")}\n`;
}

/** A Markdown table, for docs/. */
export function configTable(): string {
  const escape = (text: string) => text.replaceAll("|", "\\|");
  const rows = settings().map((setting) =>
    `| \`${setting.name}\` | ${escape(setting.description)} | ${escape(setting.type)} | ${
      setting.default === undefined ? (setting.required ? "required" : "none") : `\`${setting.default}\``
    } |`
  );
  return `| setting | meaning | type | default |\n| --- | --- | --- | --- |\n${rows.join("\n")}\n`;
}
