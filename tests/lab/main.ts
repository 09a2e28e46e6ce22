/**
 * `lab up [--hosts 1|2] | down | ssh N [CMD] | status | logs [N] | build`: a lab for people. Tests boot their own through
 * mod.ts.
 */
import { buildImages } from "./images.ts";
import { Lab } from "./lab.ts";
import { progress } from "./progress.ts";
import { isQemu } from "./qemu.ts";
import { clearState, readState, runFolder, takeRunLock } from "./run_lock.ts";
import { sshArguments } from "./ssh.ts";

const USAGE = `usage: lab up [--hosts 1|2] [--memory MIB]   boot hosts (builds what is missing)
       lab down                              end them
       lab ssh N [COMMAND]                   a shell, or a command, in dom0 of host N
       lab status                            which hosts there are
       lab logs [N]                          what Xen and dom0 of host N printed
       lab build                             build what is missing, boot nothing`;

class UsageError extends Error {}

async function up(args: string[]): Promise<void> {
  let hosts: 1 | 2 = 1;
  let memoryMib: number | undefined;
  for (let i = 0; i < args.length; i += 2) {
    const value = Number(args[i + 1]);
    if (args[i] === "--hosts" && (value === 1 || value === 2)) hosts = value;
    else if (args[i] === "--memory" && Number.isInteger(value) && value >= 2048 && value <= 16384) memoryMib = value;
    else throw new UsageError(`Cannot understand ${args.slice(i, i + 2).join(" ")}`);
  }
  const lab = await Lab.up({ hosts, detached: true, waitMs: 0, ...(memoryMib === undefined ? {} : { memoryMib }) });
  lab.release();
  progress("try: deno task lab ssh 1");
}

/** Ends a lab of `lab up`, and what a dead process left; not one that a living process uses. */
async function down(): Promise<void> {
  const state = await readState();
  if (state?.detached) await clearState();
  else (await takeRunLock(0))[Symbol.dispose]();
}

async function hostNumber(text: string | undefined): Promise<{ number: number; sshPort: number }> {
  const host = (await readState())?.hosts.find((host) => `${host.number}` === (text ?? "1"));
  if (host === undefined || !isQemu(host.pid)) throw new Error(`Host ${text ?? 1} is not up`);
  return host;
}

async function ssh(args: string[]): Promise<number> {
  const { sshPort } = await hostNumber(args[0]);
  const images = await buildImages();
  const terminal = args.length === 1 && Deno.stdin.isTerminal() ? ["-t"] : [];
  const child = new Deno.Command("ssh", {
    args: [...sshArguments({ keys: images.dom0, port: sshPort }), ...terminal, "root@127.0.0.1", ...args.slice(1)],
    stdin: "inherit",
    stdout: "inherit",
    stderr: "inherit",
  }).spawn();
  return (await child.status).code;
}

async function status(): Promise<void> {
  const state = await readState();
  const hosts = (state?.hosts ?? []).filter((host) => isQemu(host.pid));
  if (state === undefined || hosts.length === 0) return console.log("no lab is up");
  const owner = state.detached ? "lab up" : `process ${state.pid}`;
  for (const host of hosts) {
    console.log(`host ${host.number}: up by ${owner}, QEMU ${host.pid}, ssh on 127.0.0.1:${host.sshPort}`);
  }
}

async function main([command, ...args]: string[]): Promise<number> {
  switch (command) {
    case "up":
      await up(args);
      return 0;
    case "down":
      await down();
      return 0;
    case "ssh":
      return await ssh(args);
    case "status":
      await status();
      return 0;
    case "logs":
      if (!/^[12]$/.test(args[0] ?? "1")) throw new UsageError(`No host ${args[0]}`);
      console.log(await Deno.readTextFile(`${runFolder()}/${args[0] ?? "1"}/serial.log`));
      return 0;
    case "build":
      await buildImages();
      return 0;
    default:
      throw new UsageError(command === undefined ? "Say what to do" : `No such command: ${command}`);
  }
}

if (import.meta.main) {
  try {
    Deno.exit(await main(Deno.args));
  } catch (error) {
    console.error(`lab: ${error instanceof Error ? error.message : error}`);
    if (error instanceof UsageError) console.error(USAGE);
    Deno.exit(error instanceof UsageError ? 2 : 1);
  }
}
