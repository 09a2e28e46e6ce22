/** How this folder speaks to the kernel: through `ip`, `bridge` and `nft`, by a port that tests can stand behind. */

export interface CommandOptions {
  /** Standard input; none otherwise. */
  readonly input?: string;
  /** Name of the network namespace to run in; the host's own otherwise. */
  readonly namespace?: string;
}

export interface CommandResult {
  readonly status: number;
  readonly stdout: string;
  readonly stderr: string;
}

/** Runs a program to its end, within a bound of time and output. Rejects only if it could not be run or went over the bound. */
export interface CommandRunner {
  run(argv: readonly string[], options?: CommandOptions): Promise<CommandResult>;
}

/** `Cannot create the bridge of family ...: ip: RTNETLINK answers: File exists`. */
export class CommandError extends Error {
  override readonly name = "CommandError";
  readonly argv: readonly string[];
  readonly status: number;

  /** `operation` completes "Cannot ...". */
  constructor(operation: string, argv: readonly string[], result: CommandResult) {
    const said = result.stderr.trim().slice(0, 500) || `status ${result.status}`;
    super(`Cannot ${operation}: ${argv[0]}: ${said}`);
    this.argv = argv;
    this.status = result.status;
  }
}

/** Runs `argv` and gives its output. `operation` completes "Cannot ...". @throws CommandError on any other status than 0. */
export async function command(
  runner: CommandRunner,
  operation: string,
  argv: readonly string[],
  options: CommandOptions = {},
): Promise<string> {
  const result = await runner.run(argv, options);
  if (result.status !== 0) throw new CommandError(operation, argv, result);
  return result.stdout;
}

/** Runs lines of `ip` (or `bridge`) in one process; stops at the first that fails. Nothing for no lines. */
export async function batch(
  runner: CommandRunner,
  operation: string,
  tool: "ip" | "bridge",
  lines: readonly string[],
  namespace?: string,
): Promise<void> {
  if (lines.length === 0) return;
  const options = { input: `${lines.join("\n")}\n`, ...(namespace === undefined ? {} : { namespace }) };
  await command(runner, operation, [tool, "-batch", "-"], options);
}

/** Output of a `-json` command: a list of objects, each still unchecked. */
export async function readJson(
  runner: CommandRunner,
  operation: string,
  argv: readonly string[],
  namespace?: string,
): Promise<JsonObject[]> {
  return parseJsonList(
    operation,
    argv,
    await command(runner, operation, argv, namespace === undefined ? {} : { namespace }),
  );
}

/** What {@link readJson} makes of an output. */
export function parseJsonList(operation: string, argv: readonly string[], text: string): JsonObject[] {
  // `ip -json` prints nothing at all where it has nothing to say.
  const value: unknown = text.trim() === "" ? [] : JSON.parse(text);
  if (!Array.isArray(value)) throw new CommandError(operation, argv, { status: 0, stdout: "", stderr: "no JSON list" });
  return value.filter(isObject);
}

/** What `nft -j list ...` says, object by object. */
export async function readRules(
  runner: CommandRunner,
  what: readonly string[],
  namespace?: string,
): Promise<JsonObject[]> {
  const argv = ["nft", "-j", "list", ...what];
  const options = namespace === undefined ? {} : { namespace };
  const value: unknown = JSON.parse(await command(runner, "read the rules", argv, options));
  return isObject(value) && Array.isArray(value.nftables) ? value.nftables.filter(isObject) : [];
}

export type JsonObject = Readonly<Record<string, unknown>>;

export function isObject(value: unknown): value is JsonObject {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

export function textOf(object: JsonObject, key: string): string | undefined {
  const value = object[key];
  return typeof value === "string" ? value : undefined;
}

export function objectOf(object: JsonObject, key: string): JsonObject {
  const value = object[key];
  return isObject(value) ? value : {};
}
