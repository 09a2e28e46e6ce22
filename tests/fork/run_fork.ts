/** One fork in the lab, from ticket to join, with guests that check themselves: what the demo and the lab test share. */
import type { CloneInfo, TicketInfo } from "../../agent/api/engine.ts";
import { Guest, type Host, newToken } from "../lab/mod.ts";
import type { LabAgent } from "./lab_agent.ts";

const FIRST_RUN_TIMEOUT_MS = 180_000;

export interface CloneRow {
  readonly id: number;
  readonly host: string;
  readonly domid: number;
  readonly shellMs: number;
  readonly restoreMs: number;
  readonly firstRunMs: number;
  readonly faults: number;
  readonly pagesResident: number;
  readonly mismatches: number;
  readonly rounds: number;
  readonly status: number | null;
  readonly data: string | null;
}

export interface ForkResult {
  readonly ticket: string;
  readonly cloneMs: number;
  readonly descriptorBytes: number;
  readonly parent: {
    readonly pauseMs: number;
    readonly suspendMs: number;
    readonly captureMs: number;
    readonly nominateMs: number;
    readonly resumeMs: number;
    readonly mismatches: number;
    readonly rounds: number;
  };
  readonly clones: readonly CloneRow[];
}

/** A fork that has been made, its clones running. */
export interface LiveFork {
  readonly ticket: string;
  /** Under which each clone answers what `sf clone` printed in it. */
  readonly token: string;
  readonly clones: readonly CloneInfo[];
}

/** `sf request-ticket` and `sf clone` in the guest; resolves when each clone has said that it runs. */
export async function forkGuest(agent: LabAgent, guest: Guest, clones: number): Promise<LiveFork> {
  const requested = await guest.shell(`sf request-ticket ${clones}`, { timeoutMs: 240_000 });
  const [ticket = "", granted = ""] = requested.output.trim().split(/\s+/);
  if (requested.status !== 0 || Number(granted) !== clones) {
    throw new Error(
      `sf request-ticket ${clones}: status ${requested.status}, ${requested.output}\n${await agent.log()}`,
    );
  }
  const token = newToken();
  const forked = await guest.shell(`sf clone ${ticket}`, { timeoutMs: 180_000, token });
  if (forked.status !== 0 || forked.output.trim() !== "0") {
    throw new Error(`sf clone: status ${forked.status}, ${forked.output}\n${await agent.log()}`);
  }
  const running = await agent.until(
    ticket,
    (list) => list.every(({ times }) => times.firstRunMs !== undefined),
    FIRST_RUN_TIMEOUT_MS,
  );
  return { ticket, token, clones: running };
}

/** Each clone's verdict, and the parent's, after `seconds`; the clones exit with a status of their own; `sf join` collects. */
export async function verifyAndJoin(
  agent: LabAgent,
  hosts: readonly Host[],
  guest: Guest,
  fork: LiveFork,
  seconds: number,
): Promise<ForkResult> {
  await new Promise((resolve) => setTimeout(resolve, seconds * 1000));
  const before = await agent.ticket(fork.ticket);
  const verdicts = new Map<number, { rounds: number; mismatches: number }>();
  for (const clone of before.clones) {
    if (clone.state !== "running" || clone.domid === undefined) {
      throw new Error(`clone ${clone.id} is ${clone.state}: ${clone.reason}\n${await agent.log()}`);
    }
    const copy = cloneGuest(hosts, clone);
    const answer = await copy.answer(fork.token);
    // Hooks may say something before.
    if (answer.output.trim().split("\n").at(-1) !== `${clone.id}`) {
      throw new Error(`sf clone printed ${answer.output} in clone ${clone.id}`);
    }
    verdicts.set(clone.id, await verdict(copy));
  }
  const parent = await verdict(guest);
  const joined = guest.shell(`sf join ${fork.ticket}`, { timeoutMs: 180_000 });
  for (const clone of before.clones) {
    const exit = `sf exit ${10 + clone.id} "clone ${clone.id} of ${before.clones.length}"`;
    // There is no answer: the machine that was asked is gone.
    cloneGuest(hosts, clone).shell(exit).catch(() => {});
  }
  const { status, output } = await joined;
  if (status !== 0) throw new Error(`sf join: status ${status}, ${output}\n${await agent.log()}`);
  const lines = new Map(output.trim().split("\n").map((line) => [Number(line.split(/\s+/)[0]), line]));
  const after = await agent.ticket(fork.ticket);
  return result(after, parent, verdicts, lines);
}

function result(
  ticket: TicketInfo,
  parent: { rounds: number; mismatches: number },
  verdicts: ReadonlyMap<number, { rounds: number; mismatches: number }>,
  lines: ReadonlyMap<number, string>,
): ForkResult {
  const { fork } = ticket;
  if (fork === undefined) throw new Error(`ticket ${ticket.ticket} tells of no fork`);
  return {
    ticket: ticket.ticket,
    cloneMs: fork.cloneMs,
    descriptorBytes: fork.descriptorBytes,
    parent: {
      pauseMs: fork.pauseMs,
      suspendMs: fork.suspendMs,
      captureMs: fork.captureMs,
      nominateMs: fork.nominateMs,
      resumeMs: fork.resumeMs,
      ...parent,
    },
    clones: ticket.clones.map((clone) => ({
      id: clone.id,
      host: clone.host,
      domid: clone.domid ?? -1,
      shellMs: clone.times.shellMs ?? NaN,
      restoreMs: clone.times.restoreMs ?? NaN,
      firstRunMs: clone.times.firstRunMs ?? NaN,
      faults: clone.memory?.["faulted"] ?? NaN,
      pagesResident: clone.memory?.["resident"] ?? NaN,
      mismatches: verdicts.get(clone.id)?.mismatches ?? NaN,
      rounds: verdicts.get(clone.id)?.rounds ?? 0,
      // What the guest was told by join, not what the agent believes.
      status: lines.has(clone.id) ? Number(lines.get(clone.id)?.split(/\s+/)[1]) : null,
      data: lines.get(clone.id)?.split(/\s+/).slice(2).join(" ") ?? null,
    })),
  };
}

interface Verdict {
  readonly rounds: number;
  readonly mismatches: number;
}

/** A guest that has given no verdict has failed its check. */
async function verdict(guest: Guest): Promise<Verdict> {
  const verdict = await guest.selfcheck();
  return verdict ?? { rounds: 0, mismatches: Infinity };
}

export function cloneGuest(hosts: readonly Host[], clone: CloneInfo): Guest {
  const host = hosts.find(({ number }) => clone.host === `h${number}`);
  if (host === undefined || clone.domid === undefined) throw new Error(`clone ${clone.id} has no domain`);
  return new Guest(host, clone.domid, clone.name);
}
