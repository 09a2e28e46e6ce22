/** Commands that look: list, show, tree, logs, version. */
import type { Command } from "commander";
import { AgentUnreachable } from "../api/client.ts";
import { type CliDependencies, Invocation, wholeNumber } from "./context.ts";
import { formatClone, formatTicket, formatTickets, formatTree } from "./format.ts";

export function addViewCommands(program: Command, dependencies: CliDependencies): void {
  program.command("list")
    .description("tickets, newest first")
    .action(async (_options: unknown, command: Command) => {
      using run = new Invocation(dependencies, command);
      run.print(await run.client().list({ signal: run.signal }), formatTickets);
    });

  program.command("show")
    .description("one ticket with its clones, or one clone")
    .argument("<name>", "a ticket; or a clone's name, UUID or domid")
    .action(async (name: string, _options: unknown, command: Command) => {
      using run = new Invocation(dependencies, command);
      const shown = await run.client().show(name, { signal: run.signal });
      run.print(shown, (shown) => "clones" in shown ? formatTicket(shown) : formatClone(shown));
    });

  program.command("tree")
    .description("domains of this host below their parents")
    .action(async (_options: unknown, command: Command) => {
      using run = new Invocation(dependencies, command);
      run.print(await run.client().domains({ signal: run.signal }), formatTree);
    });

  program.command("logs")
    .description("the agent's log, a JSON object a line")
    .option("-n, --lines <number>", "lines of the past", "100")
    .option("-f, --follow", "go on with those to come", false)
    .action(async (options: { lines: string; follow: boolean }, command: Command) => {
      using run = new Invocation(dependencies, command);
      const tail = wholeNumber(options.lines, 0, 2000, "--lines");
      const stream = await run.client().logs({ tail, follow: options.follow }, { signal: run.signal });
      try {
        for await (const text of stream.pipeThrough(new TextDecoderStream())) run.io.out(text);
      } catch (error) {
        // Ctrl-C is how following ends.
        if (!run.signal.aborted) throw error;
      }
    });

  program.command("version")
    .description("versions of this program and of the agent that runs")
    .action(async (_options: unknown, command: Command) => {
      using run = new Invocation(dependencies, command);
      let agent: { version: string; host: string } | null = null;
      try {
        agent = await run.client().version({ signal: run.signal });
      } catch (error) {
        if (!(error instanceof AgentUnreachable)) throw error;
      }
      run.print(
        { version: dependencies.version, agent },
        ({ version, agent }) =>
          `snowflock ${version}\n${
            agent === null ? "no agent is running\n" : `agent ${agent.version} on ${agent.host}\n`
          }`,
      );
    });
}
