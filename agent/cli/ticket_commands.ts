/** Commands that change something: clone, request, fork, join, kill, checkpoint. */
import type { Command } from "commander";
import { EngineError, MAX_CLONES } from "../api/engine.ts";
import { type CliDependencies, domainArgument, ExitStatus, Invocation, wholeNumber } from "./context.ts";
import { formatClones, formatFork, formatJoined, formatTicket } from "./format.ts";

export function addTicketCommands(program: Command, dependencies: CliDependencies): void {
  program.command("clone")
    .description("fork a running domain")
    .argument("<domain>", "name or domid of the parent")
    .option("-n, --clones <number>", "clones to make", "1")
    .option("--no-fill", "bring in memory on demand only, never in the background")
    .action(async (domain: string, options: { clones: string; fill: boolean }, command: Command) => {
      using run = new Invocation(dependencies, command);
      const clones = wholeNumber(options.clones, 1, MAX_CLONES, "--clones");
      const client = run.client();
      const control = { signal: run.signal };
      const { ticket, granted } = await client.requestTicket({ domain: domainArgument(domain), clones }, control);
      if (granted < clones) run.io.err(`snowflock: only ${granted} of ${clones} clones were granted\n`);
      try {
        const report = await client.clone(ticket, options.fill ? {} : { fill: false }, control);
        run.print(report, () => `ticket ${ticket}\n${formatFork(report)}${formatClones(report.clones)}`);
        if (report.clones.every((clone) => clone.state === "lost")) throw new ExitStatus(1);
      } catch (error) {
        // The shells of a fork that failed are no use; those of one that was done are the caller's.
        if (!(error instanceof ExitStatus)) {
          try {
            await client.kill(ticket);
          } catch (failure) {
            run.io.err(`snowflock: ticket ${ticket} could not be ended: ${(failure as Error).message}\n`);
          }
        }
        throw error;
      }
    });

  program.command("request")
    .description("reserve clones of a domain and make their shells, for a fork later")
    .argument("<domain>", "name or domid of the parent")
    .option("-n, --clones <number>", "clones to make", "1")
    .action(async (domain: string, options: { clones: string }, command: Command) => {
      using run = new Invocation(dependencies, command);
      const clones = wholeNumber(options.clones, 1, MAX_CLONES, "--clones");
      const request = { domain: domainArgument(domain), clones };
      run.print(await run.client().requestTicket(request, { signal: run.signal }), formatTicket);
    });

  program.command("fork")
    .description("fork the parent of a ticket into its shells")
    .argument("<ticket>")
    .option("--no-fill", "bring in memory on demand only, never in the background")
    .action(async (ticket: string, options: { fill: boolean }, command: Command) => {
      using run = new Invocation(dependencies, command);
      const report = await run.client().clone(ticket, options.fill ? {} : { fill: false }, { signal: run.signal });
      run.print(report, () => `${formatFork(report)}${formatClones(report.clones)}`);
      if (report.clones.every((clone) => clone.state === "lost")) throw new ExitStatus(1);
    });

  program.command("join")
    .description("wait until all clones have ended; prints ID STATUS DATA for each")
    .argument("<ticket>")
    .option("-t, --timeout <seconds>", "give up after this long")
    .action(async (ticket: string, options: { timeout?: string }, command: Command) => {
      using run = new Invocation(dependencies, command);
      const wait = options.timeout === undefined
        ? {}
        : { timeoutMs: 1000 * wholeNumber(options.timeout, 0, 2_000_000, "--timeout") };
      run.print(await run.client().join(ticket, wait, { signal: run.signal }), formatJoined);
    });

  program.command("kill")
    .description("end the clones of tickets, and the tickets")
    .argument("<ticket...>")
    .action(async (tickets: string[], _options: unknown, command: Command) => {
      using run = new Invocation(dependencies, command);
      const client = run.client();
      // All are tried: one that is unknown must not keep the others alive.
      const results = await Promise.allSettled(tickets.map((ticket) => client.kill(ticket, { signal: run.signal })));
      const failed = results.filter((result) => result.status === "rejected");
      if (failed.length > 1) {
        throw new EngineError("failed", failed.map(({ reason }) => (reason as Error).message).join("; "));
      }
      for (const { reason } of failed) throw reason;
      run.print({ killed: tickets }, () => "");
    });

  program.command("checkpoint")
    .description("suspend a domain for ever, as the template of clones made later")
    .argument("<domain>", "name or domid")
    .action(async (domain: string, _options: unknown, command: Command) => {
      using run = new Invocation(dependencies, command);
      run.print(await run.client().checkpoint(domainArgument(domain), { signal: run.signal }), formatTicket);
    });
}
