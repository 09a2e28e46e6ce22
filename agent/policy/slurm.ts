/**
 * Slurm places clones: each ticket is a job allocation of one task a clone, in which nothing but a question runs. Hosts must have
 * the same names in Slurm and here. Partition, account and the like are set as for every salloc, by the agent's environment
 * (SALLOC_PARTITION, SALLOC_ACCOUNT, SLURM_CONF: salloc(1)).
 */
import { getLogger } from "@logtape/logtape";
import { EngineError } from "../api/engine.ts";
import type { Placement } from "../fork/placement.ts";
import { firstLine, type ProgramEnd, runProgram } from "./run_program.ts";

export interface SlurmOptions {
  /** How long Slurm may take to find room, seconds. */
  readonly waitSeconds?: number;
  readonly timeoutMs?: number;
  /** Beside the agent's own. */
  readonly env?: Readonly<Record<string, string>>;
}

/** Fewer tasks are tried this often, each time half as many. */
const MAX_TRIES = 6;
/** What salloc says if it could have been fewer. */
const NO_ROOM =
  /not available|timed out|more processors requested|node count specification|violates|exceeds|requested resources/i;

export function slurm({ waitSeconds = 5, timeoutMs = 30_000, env = {} }: SlurmOptions = {}): Placement {
  const log = getLogger(["snowflock", "slurm"]);
  const run = (...command: string[]): Promise<ProgramEnd> => runProgram(command, { timeoutMs, env });
  const must = async (...command: string[]): Promise<string> => {
    const end = await run(...command);
    if (!end.success) throw new Error(`${command[0]} failed: ${firstLine(end.stderr)}`);
    return end.stdout;
  };
  /** By name: also an allocation whose number nobody has read is found by it. */
  const jobName = (ticket: string) => `snowflock-${ticket}`;
  const cancel = (ticket: string) => must("scancel", "--quiet", `--name=${jobName(ticket)}`);

  const allocate = async (
    ticket: string,
    wanted: number,
    rooms: ReadonlyMap<string, number>,
  ): Promise<Map<string, number>> => {
    const nodes = (await must("sinfo", "--noheader", "--Node", "--format=%N")).split("\n").filter((name) =>
      name !== ""
    );
    const known = new Set(nodes);
    const usable = new Map([...rooms].filter(([host, room]) => room > 0 && known.has(host)));
    if (usable.size === 0) {
      throw new Error(`Slurm has no node with the name of a host with room (${[...known].join(", ")})`);
    }
    const excluded = [...known].filter((node) => !usable.has(node));
    let tasks = Math.min(wanted, [...usable.values()].reduce((sum, room) => sum + room, 0));
    for (let tries = 1;; tries++) {
      const end = await run(
        "salloc",
        "--no-shell",
        `--job-name=${jobName(ticket)}`,
        `--ntasks=${tasks}`,
        `--immediate=${waitSeconds}`,
        ...(excluded.length === 0 ? [] : [`--exclude=${excluded.join(",")}`]),
      );
      const job = /Granted job allocation (\d+)/.exec(end.stderr)?.[1];
      if (end.success && job !== undefined) {
        return await ask(job, tasks, usable);
      }
      if (!NO_ROOM.test(end.stderr) || tasks === 1 || tries === MAX_TRIES) {
        throw new Error(`salloc failed: ${firstLine(errorLines(end.stderr))}`);
      }
      tasks = Math.floor(tasks / 2);
    }
  };

  /** Which nodes the tasks are on. */
  const ask = async (job: string, tasks: number, rooms: ReadonlyMap<string, number>): Promise<Map<string, number>> => {
    const said = await must("srun", `--jobid=${job}`, `--ntasks=${tasks}`, "printenv", "SLURMD_NODENAME");
    const placed = new Map<string, number>();
    for (const node of said.split("\n").filter((line) => line !== "").slice(0, tasks)) {
      const room = rooms.get(node);
      if (room === undefined) throw new Error(`Slurm gave a node that is no host: ${node.slice(0, 64)}`);
      // Slurm does not know how much memory a clone takes.
      placed.set(node, Math.min(room, (placed.get(node) ?? 0) + 1));
    }
    return placed;
  };

  const held = new Set<string>();
  return {
    async allocate(ticket, wanted, rooms) {
      held.add(ticket);
      try {
        return await allocate(ticket, wanted, rooms);
      } catch (cause) {
        await cancel(ticket).catch((error) => log.error("an allocation could not be cancelled", { ticket, error }));
        held.delete(ticket);
        throw new EngineError("failed", `Cannot place clones: ${cause instanceof Error ? cause.message : cause}`, {
          cause,
        });
      }
    },
    async release(ticket) {
      if (held.delete(ticket)) await cancel(ticket);
    },
  };
}

/** Without the lines in which salloc tells how it gets on. */
function errorLines(text: string): string {
  const lines = text.split("\n").filter((line) => line.includes("error"));
  return lines.length === 0 ? text : lines.join("\n");
}
