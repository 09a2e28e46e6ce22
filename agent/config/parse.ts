/** From the text of a config file to settings. */
import { parseDocument } from "yaml";
import type { z } from "zod";
import { Config } from "./schema.ts";

/** Larger files are not configs. */
export const MAX_CONFIG_BYTES = 1024 * 1024;
/** Problems told at once. */
const MAX_PROBLEMS = 20;

/** A config that cannot be used. `problems` has one line each, with the place. */
export class ConfigError extends Error {
  override readonly name = "ConfigError";
  readonly problems: readonly string[];

  constructor(source: string, problems: readonly string[], options?: ErrorOptions) {
    super(`Cannot use ${source}: ${problems.join("; ")}`, options);
    this.problems = problems;
  }
}

/**
 * Parses YAML, of which JSON is a part; empty text is all defaults. `source` names the file in errors.
 * @throws {ConfigError} with all problems at once.
 */
export function parseConfig(text: string, source = "the config"): Config {
  if (new TextEncoder().encode(text).length > MAX_CONFIG_BYTES) {
    throw new ConfigError(source, [`it has over ${MAX_CONFIG_BYTES} bytes`]);
  }
  const document = parseDocument(text, { version: "1.2", uniqueKeys: true, prettyErrors: true });
  const [syntax] = document.errors;
  if (syntax !== undefined) throw new ConfigError(source, [syntax.message.split("\n")[0] ?? "not YAML"]);
  let value: unknown;
  try {
    // Aliases can make a small file huge.
    value = document.toJS({ maxAliasCount: 50 });
  } catch (error) {
    throw new ConfigError(source, ["it has too many aliases"], { cause: error });
  }
  return checkConfig(value ?? {}, source);
}

/** Checks settings that are values already. @throws {ConfigError} */
export function checkConfig(value: unknown, source = "the config"): Config {
  const result = Config.safeParse(value);
  if (result.success) return result.data;
  throw new ConfigError(source, result.error.issues.slice(0, MAX_PROBLEMS).map(problem), { cause: result.error });
}

/** `limits.clonesPerTicket: too big: ...`. */
function problem(issue: z.core.$ZodIssue): string {
  const at = issue.path.map(String).join(".");
  if (issue.code === "unrecognized_keys") {
    return issue.keys.map((key) => `${at === "" ? key : `${at}.${key}`}: there is no such setting`).join("; ");
  }
  const message = issue.message.slice(0, 200);
  return at === "" ? message : `${at}: ${message}`;
}
