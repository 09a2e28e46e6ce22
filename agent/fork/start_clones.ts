/** Starts a fork's clones on their hosts, all at once. */
import { type CloneOptions, EngineError } from "../api/engine.ts";
import type { CloneHost, PageChannel, Started } from "./clone_host.ts";
import type { Descriptor } from "./descriptor.ts";
import { cloneNodes } from "./guest_nodes.ts";
import type { SnapshotLoans } from "./loans.ts";
import type { CloneRecord, Ticket, Tickets } from "./tickets.ts";
import type { Clock } from "./timing.ts";

export interface StartParts {
  readonly hosts: ReadonlyMap<string, CloneHost>;
  /** The name of this host, which has the snapshot. */
  readonly local: string;
  readonly loans: SnapshotLoans;
  readonly tickets: Tickets;
  readonly clock: Clock;
  /** Lets other hosts have a snapshot's pages. */
  readonly share: ((snapshot: string, family: string) => Promise<PageChannel>) | undefined;
}

/** Resolves when every clone of the ticket runs or is lost. */
export async function startClones(
  parts: StartParts,
  ticket: Ticket,
  descriptor: Descriptor,
  options: CloneOptions,
): Promise<void> {
  const { hosts, local, loans, tickets, clock } = parts;
  const { fill } = options;
  let shared: Promise<PageChannel> | undefined;
  const byHost = Map.groupBy(ticket.clones.filter((clone) => !clone.ended), ({ host }) => host);
  for (const clone of ticket.clones) if (!clone.ended) clone.state = "restoring";

  const startOn = async (hostName: string, clones: readonly CloneRecord[]): Promise<Started[]> => {
    const host = hosts.get(hostName);
    const nodes = new Map(clones.map((clone) => [clone.id, cloneNodes(ticket, clone, options)]));
    const request = { ticket: ticket.name, descriptor, nodes, ...(fill === undefined ? {} : { fill }) };
    if (hostName === local) return await host?.start(request) ?? [];
    for (const { id } of clones) loans.lend(descriptor.snapshot, ticket.name, id);
    const channel = await (shared ??= share(parts, descriptor.snapshot, ticket.family));
    return await host?.start({ ...request, channel }) ?? [];
  };

  await Promise.all([...byHost].map(async ([hostName, clones]) => {
    let started: Started[];
    try {
      started = await startOn(hostName, clones);
    } catch (error) {
      started = clones.map(({ id }) => ({ id, error: error instanceof Error ? error.message : String(error) }));
    }
    for (const clone of clones) {
      const result = started.find(({ id }) => id === clone.id);
      if (result === undefined || result.error !== undefined) {
        clone.domid = undefined;
        tickets.cloneEnded(ticket, clone, "lost", result?.error ?? "its host did not start it");
        continue;
      }
      if (clone.ended) continue;
      clone.state = "running";
      if (result.restoreMs !== undefined) clone.times.restoreMs = result.restoreMs;
      clone.times.startedMs ??= clock.nowMs() - ticket.forkedAtMs;
      tickets.emit({ type: "clone", clone: clone.info() });
    }
  }));
}

function share({ share }: StartParts, snapshot: string, family: string): Promise<PageChannel> {
  return share === undefined
    ? Promise.reject(new EngineError("unsupported", "This host serves no pages to others"))
    : share(snapshot, family);
}
