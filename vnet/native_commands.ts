/** The machine's own `ip`, `nft` and so on, by `Deno.Command`. */
import type { CommandOptions, CommandResult, CommandRunner } from "./commands.ts";

export interface NativeCommandOptions {
  /** A network namespace that plays the host; by default this process's own. */
  readonly hostNamespace?: string;
  readonly timeoutMs?: number;
}

/** Over this the output is cut off, and the command counts as failed. */
const MAX_OUTPUT_BYTES = 16 * 1024 * 1024;

/** A command that ran over its time or its output. */
export class CommandBoundError extends Error {
  override readonly name = "CommandBoundError";
}

export class NativeCommands implements CommandRunner {
  readonly #hostNamespace: string | undefined;
  readonly #timeoutMs: number;

  constructor(options: NativeCommandOptions = {}) {
    this.#hostNamespace = options.hostNamespace;
    this.#timeoutMs = options.timeoutMs ?? 15_000;
  }

  async run(argv: readonly string[], options: CommandOptions = {}): Promise<CommandResult> {
    const namespace = options.namespace ?? this.#hostNamespace;
    // nsenter rather than `ip netns exec`: the latter also enters a mount namespace of its own, where `ip netns add` would
    // leave its mount behind. /proc/sys/net shows the namespace of whoever reads it, either way.
    const prefix = namespace === undefined ? [] : ["nsenter", `--net=/run/netns/${namespace}`, "--"];
    const [program = "", ...args] = [...prefix, ...argv];
    const child = new Deno.Command(program, {
      args,
      stdin: options.input === undefined ? "null" : "piped",
      stdout: "piped",
      stderr: "piped",
      env: { LC_ALL: "C" },
    }).spawn();
    let fault: string | undefined;
    const stop = (why: string) => {
      fault ??= why;
      try {
        child.kill("SIGKILL");
      } catch (error) {
        if (!(error instanceof TypeError)) throw error; // it has ended already
      }
    };
    const timer = setTimeout(() => stop(`took over ${this.#timeoutMs} ms`), this.#timeoutMs);
    try {
      const [status, stdout, stderr] = await Promise.all([
        child.status,
        collect(child.stdout, () => stop(`printed over ${MAX_OUTPUT_BYTES} bytes`)),
        collect(child.stderr, () => stop(`printed over ${MAX_OUTPUT_BYTES} bytes`)),
        options.input === undefined ? undefined : feed(child.stdin, options.input),
      ]);
      if (fault !== undefined) throw new CommandBoundError(`${argv.slice(0, 4).join(" ")} ${fault} and was ended`);
      return { status: status.code, stdout, stderr };
    } finally {
      clearTimeout(timer);
    }
  }
}

async function collect(stream: ReadableStream<Uint8Array>, tooMuch: () => void): Promise<string> {
  const decoder = new TextDecoder();
  let text = "";
  let bytes = 0;
  for await (const chunk of stream) {
    bytes += chunk.byteLength;
    if (bytes > MAX_OUTPUT_BYTES) {
      tooMuch();
      break;
    }
    text += decoder.decode(chunk, { stream: true });
  }
  return text + decoder.decode();
}

/** A program that ends without reading all its input says why by its status. */
async function feed(stream: WritableStream<Uint8Array>, input: string): Promise<void> {
  try {
    const writer = stream.getWriter();
    await writer.write(new TextEncoder().encode(input));
    await writer.close();
  } catch (error) {
    if (!(error instanceof Deno.errors.BrokenPipe)) throw error;
  }
}
