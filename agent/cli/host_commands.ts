/** Commands that run on the host itself, without an agent: agent, doctor. */
import type { Command } from "commander";
import { checkConfig, type Config, ConfigError, configHelp, parseConfig } from "../config/mod.ts";
import { formatFindings, healthy } from "../doctor/mod.ts";
import { type CliDependencies, ExitStatus, Invocation } from "./context.ts";
import type { CliIo } from "./io.ts";

const DEFAULT_CONFIG = "/etc/snowflock/agent.yaml";

export function addHostCommands(program: Command, dependencies: CliDependencies): void {
  program.command("agent")
    .description("run the agent of this host, until it is interrupted")
    .option("-c, --config <file>", `settings; ${DEFAULT_CONFIG} if it is there, else defaults`)
    .option("--check", "only check the settings and print them", false)
    .addHelpText("after", () => `\n${configHelp()}`)
    .action(async (options: { config?: string; check: boolean }, command: Command) => {
      using run = new Invocation(dependencies, command);
      let config = await readConfig(run.io, options.config);
      if (run.socketGiven) config = checkConfig({ ...config, socket: run.socket }, "--socket");
      if (options.check) return run.io.out(`${JSON.stringify(config, undefined, 2)}\n`);
      await dependencies.runAgent(config, run.signal);
    });

  program.command("doctor")
    .description("what this host lacks for forks, and how to get it")
    .action(async (_options: unknown, command: Command) => {
      using run = new Invocation(dependencies, command);
      const findings = await dependencies.doctor();
      run.print({ healthy: healthy(findings), findings }, ({ findings }) => formatFindings(findings));
      if (!healthy(findings)) throw new ExitStatus(1);
    });
}

/** A file that was named must be there; the default one need not. */
async function readConfig(io: CliIo, named: string | undefined): Promise<Config> {
  const path = named ?? DEFAULT_CONFIG;
  let text: string;
  try {
    text = await io.readText(path);
  } catch (error) {
    if (named === undefined && error instanceof Deno.errors.NotFound) return checkConfig({});
    const reason = error instanceof Deno.errors.NotFound ? "there is no such file" : (error as Error).message;
    throw new ConfigError(path, [reason], { cause: error });
  }
  return parseConfig(text, path);
}
