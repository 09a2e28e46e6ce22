/** Where clones go: the policy decides, given what each host has room for. */
import { randomUUID } from "node:crypto";
import { getLogger } from "@logtape/logtape";
import { EngineError } from "../api/engine.ts";
import type { CloneHost, Prepared } from "./clone_host.ts";
import { CloneRecord, type Ticket } from "./tickets.ts";

const log = getLogger(["snowflock", "placement"]);

/** The policy: two calls, around a ticket's life. `agent/policy/` has more of them. */
export interface Placement {
  /** How many clones each host gets, given what each has room for. Sums to `wanted` or less. */
  allocate(ticket: string, wanted: number, rooms: ReadonlyMap<string, number>): Promise<ReadonlyMap<string, number>>;
  /** The ticket has ended. Called once for each ticket, also for those that `allocate` failed for. */
  release(ticket: string): Promise<void>;
}

/** Fills one host after the other. */
export const pack: Placement = {
  allocate(_ticket, wanted, rooms) {
    const placed = new Map<string, number>();
    let left = wanted;
    for (const [host, room] of rooms) {
      const take = Math.min(left, room);
      if (take > 0) placed.set(host, take);
      left -= take;
    }
    return Promise.resolve(placed);
  },
  release: () => Promise.resolve(),
};

/**
 * Makes shells for a ticket where the policy wants them. Fewer than wanted are no error; none at all is EngineError `no-memory`.
 */
export async function makeShells(
  ticket: Ticket,
  wanted: number,
  hosts: readonly CloneHost[],
  placement: Placement,
): Promise<CloneRecord[]> {
  const rooms = new Map<string, number>();
  const errors: string[] = [];
  await Promise.all(hosts.map(async (host) => {
    try {
      rooms.set(host.name, await host.capacity(ticket.shape, wanted));
    } catch (error) {
      log.info("a host is left out", { host: host.name, error });
      errors.push(error instanceof Error ? error.message : String(error));
    }
  }));
  const ordered = new Map(hosts.flatMap(({ name }) => {
    const room = rooms.get(name);
    return room === undefined ? [] : [[name, room] as const];
  }));
  const placed = await placement.allocate(ticket.name, wanted, ordered);
  const chosen = [...placed].map(([hostName, count]) => {
    const host = hosts.find(({ name }) => name === hostName);
    if (host === undefined) throw new EngineError("failed", `The policy named a host that is not known: ${hostName}`);
    return { host, count };
  });
  const records: CloneRecord[] = [];
  let id = 1;
  const results = await Promise.all(chosen.map(async ({ host, count }) => {
    const clones = Array.from({ length: count }, () => {
      const uuid = randomUUID();
      return { id, name: `${ticket.parent.name}-${ticket.name}-${id++}`.slice(-100), uuid };
    });
    const { name, family, shape } = ticket;
    try {
      const prepared = await host.prepare({ ticket: name, family, clones, shape });
      return { host, clones, prepared };
    } catch (cause) {
      // The others' shells are as good as ever.
      const error = cause instanceof Error ? cause.message : String(cause);
      return { host, clones, prepared: clones.map(({ id }): Prepared => ({ id, error })) };
    }
  }));
  for (const { host, clones, prepared } of results) {
    for (const { id, domid, shellMs, error } of prepared) {
      const clone = clones.find((each) => each.id === id);
      if (clone === undefined || domid === undefined) {
        if (error !== undefined) errors.push(error);
        continue;
      }
      const record = new CloneRecord(ticket.name, clone.id, clone.name, clone.uuid, host.name);
      record.domid = domid;
      if (shellMs !== undefined) record.times.shellMs = shellMs;
      records.push(record);
    }
  }
  if (records.length === 0) {
    throw new EngineError(
      "no-memory",
      `No host has room for a clone of ${ticket.parent.name}${errors.length > 0 ? `: ${errors[0]}` : ""}`,
    );
  }
  return records.toSorted((a, b) => a.id - b.id);
}
