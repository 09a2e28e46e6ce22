/** What every command needs: the options that all have, the client, the output. */
import type { Command } from "commander";
import { EngineError } from "../api/engine.ts";
import { ApiClient } from "../api/client.ts";
import type { Config } from "../config/mod.ts";
import type { Finding } from "../doctor/mod.ts";
import { type CliIo, PROCESS_IO } from "./io.ts";

export const DEFAULT_SOCKET = "/run/snowflock/agent.sock";

export interface CliDependencies {
  readonly version: string;
  /** Runs the agent until `signal` is aborted, then cleans up and resolves. */
  readonly runAgent: (config: Config, signal: AbortSignal) => Promise<void>;
  readonly doctor: () => Promise<readonly Finding[]>;
  /** Default: a client of the API. */
  readonly connect?: (socket: string) => ApiClient;
  /** Default: the process's own. */
  readonly io?: CliIo;
}

/** Ends the program with a status, the message having been told already. */
export class ExitStatus extends Error {
  override readonly name = "ExitStatus";
  constructor(readonly status: number) {
    super(`exit ${status}`);
  }
}

interface CommonOptions {
  readonly json?: boolean;
  readonly socket?: string;
}

/** One run of a command. */
export class Invocation implements Disposable {
  readonly io: CliIo;
  readonly json: boolean;
  readonly socket: string;
  /** Told by `--socket` or the environment, and so stronger than the config. */
  readonly socketGiven: boolean;
  readonly #dependencies: CliDependencies;
  readonly #abort = new AbortController();
  readonly #stack = new DisposableStack();

  constructor(dependencies: CliDependencies, command: Command) {
    const options = command.optsWithGlobals<CommonOptions>();
    this.#dependencies = dependencies;
    this.io = dependencies.io ?? PROCESS_IO;
    this.json = options.json ?? false;
    const given = options.socket ?? this.io.env("SNOWFLOCK_SOCKET");
    this.socketGiven = given !== undefined;
    this.socket = given ?? DEFAULT_SOCKET;
    this.#stack.use(this.io.onInterrupt(() => this.#abort.abort()));
  }

  /** Aborted by Ctrl-C. */
  get signal(): AbortSignal {
    return this.#abort.signal;
  }

  client(): ApiClient {
    const connect = this.#dependencies.connect ?? ((socket: string) => new ApiClient(socket));
    return this.#stack.use(connect(this.socket));
  }

  /** Prints `value` with `--json`, else what `text` gives. */
  print<T>(value: T, text: (value: T) => string): void {
    this.io.out(this.json ? `${JSON.stringify(value, undefined, 2)}\n` : text(value));
  }

  [Symbol.dispose](): void {
    this.#stack.dispose();
  }
}

/** An option's number. @throws EngineError `bad-request` */
export function wholeNumber(text: string, least: number, most: number, what: string): number {
  const value = /^\d{1,9}$/.test(text) ? Number(text) : NaN;
  if (value >= least && value <= most) return value;
  throw new EngineError(
    "bad-request",
    `${what} must be a whole number of ${least} to ${most}, not ${text.slice(0, 40)}`,
  );
}

/** A domain as it is written on a command line: digits are a domid. */
export function domainArgument(text: string): string | number {
  return /^\d{1,5}$/.test(text) ? Number(text) : text;
}
