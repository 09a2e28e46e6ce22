/** Commands of the machine that the lab runs on. */

export interface CommandResult {
  /** Exit status; 128 + N for signal N, as a shell says it. */
  readonly status: number;
  readonly stdout: string;
  readonly stderr: string;
}

export interface CommandOptions {
  /** Throw a {@link CommandError} unless the status is 0. Default true. */
  readonly check?: boolean;
  readonly input?: string | Uint8Array<ArrayBuffer>;
  /** After this the command is killed and a {@link CommandError} thrown. Default 120,000. */
  readonly timeoutMs?: number;
}

export class CommandError extends Error {
  constructor(readonly command: string, readonly result: CommandResult, why = `ended with ${result.status}`) {
    const said = (result.stderr.trim() || result.stdout.trim()).slice(-2000);
    super(`Command ${why}: ${command.slice(0, 300)}${said ? `\n${said}` : ""}`);
    this.name = "CommandError";
  }
}

/** Runs a program and collects what it prints. `label` names it in errors. */
export async function runCommand(
  argv: readonly string[],
  options: CommandOptions & { label?: string } = {},
): Promise<CommandResult> {
  const [program, ...args] = argv;
  if (program === undefined) throw new Error("Cannot run an empty command");
  const child = new Deno.Command(program, { args, stdin: "piped", stdout: "piped", stderr: "piped" }).spawn();
  let late = false;
  const timer = setTimeout(() => {
    late = true;
    kill(child, "SIGKILL");
  }, options.timeoutMs ?? 120_000);
  try {
    const fed = feed(child.stdin, options.input);
    const [output] = await Promise.all([child.output(), fed]);
    const text = new TextDecoder();
    const result = { status: output.code, stdout: text.decode(output.stdout), stderr: text.decode(output.stderr) };
    const label = options.label ?? argv.join(" ");
    if (late) throw new CommandError(label, result, `took more than ${options.timeoutMs ?? 120_000} ms`);
    if (result.status !== 0 && (options.check ?? true)) throw new CommandError(label, result);
    return result;
  } finally {
    clearTimeout(timer);
  }
}

/** A program that ends before it has read its input is judged by its status, not by the broken pipe. */
async function feed(stdin: WritableStream<Uint8Array<ArrayBuffer>>, input: CommandOptions["input"]): Promise<void> {
  const writer = stdin.getWriter();
  try {
    if (input !== undefined && input.length > 0) {
      await writer.write(typeof input === "string" ? new TextEncoder().encode(input) : input);
    }
    await writer.close();
  } catch (error) {
    if (!(error instanceof Deno.errors.BrokenPipe)) throw error;
  }
}

/** Signals a child; one that has ended already is fine. */
export function kill(child: Deno.ChildProcess, signal: Deno.Signal): void {
  try {
    child.kill(signal);
  } catch (error) {
    if (!(error instanceof TypeError) && !(error instanceof Deno.errors.NotFound)) throw error;
  }
}

/** Waits until `done` says so, trying every `everyMs`; throws what `late` says after `timeoutMs`. */
export async function waitUntil(
  done: () => Promise<boolean> | boolean,
  { timeoutMs, everyMs, late }: { timeoutMs: number; everyMs: number; late: () => string },
): Promise<void> {
  const endMs = performance.now() + timeoutMs;
  while (!(await done())) {
    if (performance.now() > endMs) throw new Error(late());
    await new Promise((resolve) => setTimeout(resolve, everyMs));
  }
}
