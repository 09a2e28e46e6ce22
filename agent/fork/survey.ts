/** What tickets tell of domains, and hosts of their clones' memory, at a moment. */
import { getLogger } from "@logtape/logtape";
import type { DomainSummary, Identity } from "../api/engine.ts";
import type { CloneHost } from "./clone_host.ts";
import type { Ticket } from "./tickets.ts";

/** Parents, and the clones that live on `host`, of tickets that have not ended. */
export function knownDomains(
  tickets: readonly Ticket[],
  host: string,
  identity: (domid: number) => Identity,
): DomainSummary[] {
  const known = new Map<number, DomainSummary>();
  for (const ticket of tickets) {
    if (ticket.ended) continue;
    const { domid, name } = ticket.parent;
    if (!known.has(domid)) known.set(domid, { domid, name, identity: identity(domid) });
    for (const clone of ticket.clones) {
      if (clone.domid === undefined || clone.host !== host || clone.ended) continue;
      known.set(clone.domid, {
        domid: clone.domid,
        name: clone.name,
        parentDomid: domid,
        parent: name,
        identity: { id: clone.id, ticket: ticket.name, family: ticket.family },
      });
    }
  }
  return [...known.values()];
}

/** Brings the memory counters of a ticket's clones up to date. A host that does not answer is left out. */
export async function noteMemory(ticket: Ticket, hosts: ReadonlyMap<string, CloneHost>): Promise<void> {
  const names = new Set(ticket.clones.filter((clone) => !clone.ended).map(({ host }) => host));
  await Promise.all([...names].map(async (name) => {
    try {
      for (const [id, memory] of await hosts.get(name)?.memory(ticket.name) ?? []) {
        const clone = ticket.clone(id);
        if (clone !== undefined) clone.memory = memory;
      }
    } catch (error) {
      getLogger(["snowflock", "engine"]).info("a host did not report its clones' memory", { host: name, error });
    }
  }));
}
