/** The `snowflock` command line. */
import { Command, CommanderError } from "commander";
import { AgentUnreachable } from "../api/client.ts";
import { EngineError } from "../api/engine.ts";
import { SocketError } from "../api/socket.ts";
import { ConfigError } from "../config/mod.ts";
import { type CliDependencies, DEFAULT_SOCKET, ExitStatus } from "./context.ts";
import { addHostCommands } from "./host_commands.ts";
import { PROCESS_IO } from "./io.ts";
import { addTicketCommands } from "./ticket_commands.ts";
import { addViewCommands } from "./view_commands.ts";

const INTERRUPTED = 130;

/** The program with all commands of this folder; others may be added. Its actions reject; {@link runProgram} tells errors. */
export function buildProgram(dependencies: CliDependencies): Command {
  const io = dependencies.io ?? PROCESS_IO;
  const program = new Command("snowflock")
    .description("VM fork for Xen: copies of a running domain in under a second")
    .version(dependencies.version, "-V, --version")
    .option("--json", "print JSON")
    .option("--socket <path>", `the agent's socket (default: SNOWFLOCK_SOCKET or ${DEFAULT_SOCKET})`)
    .configureHelp({ showGlobalOptions: true })
    .configureOutput({ writeOut: (text) => io.out(text), writeErr: (text) => io.err(text) })
    .showHelpAfterError("(see --help)")
    .exitOverride();
  addHostCommands(program, dependencies);
  addTicketCommands(program, dependencies);
  addViewCommands(program, dependencies);
  return program;
}

/**
 * Runs `program` with arguments (without the program's own name) and gives the exit status: 0, 1 for a failure, which was told in one line on
 * standard error (with `--json` an object `error`), 2 for wrong use, 130 after Ctrl-C.
 */
export async function runProgram(
  program: Command,
  dependencies: CliDependencies,
  args: readonly string[],
): Promise<number> {
  const io = dependencies.io ?? PROCESS_IO;
  try {
    await program.parseAsync([...args], { from: "user" });
    return 0;
  } catch (error) {
    if (error instanceof ExitStatus) return error.status;
    // Commander has told its own errors; `--help` is one of status 0.
    if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : 2;
    const { code, message } = explain(error);
    io.err(args.includes("--json") ? `${JSON.stringify({ error: { code, message } })}\n` : `snowflock: ${message}\n`);
    return code === "aborted" ? INTERRUPTED : 1;
  }
}

function explain(error: unknown): { code: string; message: string } {
  const message = (error instanceof Error ? error.message : String(error)).replaceAll(/\s*\n\s*/g, "; ");
  if (error instanceof EngineError) return { code: error.code, message };
  if (error instanceof AgentUnreachable) return { code: "unreachable", message };
  if (error instanceof ConfigError) return { code: "bad-config", message };
  if (error instanceof SocketError) return { code: "busy", message };
  return { code: "failed", message };
}
