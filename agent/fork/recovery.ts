/** What the agent does first: undo what an earlier one, which died, has left. */
import { getLogger } from "@logtape/logtape";
import type { Domid, Gfn } from "../../hypercall/ports.ts";
import type { DomainInfo } from "../../hypercall/xen_api.ts";
import { domainPath } from "./domain_tree.ts";
import { endDomain, removeNodes } from "./end.ts";
import type { Journal, JournalParent } from "./journal.ts";
import type { Parents } from "./parent.ts";
import type { ShellPorts } from "./shell.ts";
import type { Store } from "./store.ts";
import { uuidText } from "./uuid.ts";

export interface Recovered {
  /** Clones and shells that were ended. */
  readonly ended: number;
  /** Parents that were let go: they run, and their memory is being released. */
  readonly parents: number;
}

/**
 * Ends the clones of an agent that died, since their memory died with it, and lets their parents go on: a suspended one is resumed,
 * its ring is taken over, and nominated pages are given back. What cannot be undone stays in the journal, for the next start.
 */
export async function recover(ports: ShellPorts, journal: Journal, parents: Parents): Promise<Recovered> {
  const log = getLogger(["snowflock", "recovery"]);
  const { xen, memory, store } = ports;
  const domains = xen.listDomains();
  const byUuid = new Map(domains.map((info) => [uuidText(info.handle), info]));
  const shells = new Set(journal.shells);
  const recovered = { ended: 0, parents: 0 };
  // First those who may stand still.
  for (const parent of journal.parents) {
    const info = byUuid.get(parent.uuid);
    const domid = parent.domid as Domid;
    if (info === undefined || info.domid !== domid || info.dying || shells.has(parent.uuid)) {
      journal.removeParent(parent.uuid);
      continue;
    }
    log.warn("a parent that an agent held when it died is let go", { domid });
    try {
      await takeOver(ports, journal, parent, info);
      await parents.recover(domid, memory.released(domid).then(() => journal.removeParent(parent.uuid)));
      recovered.parents++;
    } catch (error) {
      log.error("a parent could not be let go", { domid, error });
    }
  }
  const nodes = await findNodes(store, shells);
  await Promise.all([...shells].map(async (uuid) => {
    const info = byUuid.get(uuid);
    const domid = info?.domid ?? nodes.get(uuid);
    try {
      if (info !== undefined) {
        log.warn("a clone of an agent that died is ended", { domid: info.domid });
        await endDomain(ports, info.domid, uuid, false);
        recovered.ended++;
      } else if (domid !== undefined && !domains.some((other) => other.domid === domid)) {
        await removeNodes(store, domid, uuid);
      }
      journal.removeShell(uuid);
    } catch (error) {
      log.error("a clone of an agent that died could not be ended", { domid, error });
    }
  }));
  return recovered;
}

/** Takes a parent's ring over while it stands still. Where that fails it is left so: without a ring it would be crashed. */
async function takeOver({ xen, memory }: ShellPorts, journal: Journal, parent: JournalParent, info: DomainInfo) {
  const domid = parent.domid as Domid;
  if (!(parent.paused === true && info.paused)) {
    journal.setPaused(parent.uuid, true);
    xen.pauseDomain(domid);
  }
  const ranges = parent.ranges.map(([first, pages]) => ({ first: BigInt(first) as Gfn, pages }));
  await memory.takeOver(domid, ranges, BigInt(parent.ring) as Gfn, info.maxVcpuId + 1);
  xen.unpauseDomain(domid);
  journal.setPaused(parent.uuid, false);
}

/** The domids under which xenstore has nodes of these machines, by UUID. */
async function findNodes(store: Store, uuids: ReadonlySet<string>): Promise<Map<string, number>> {
  const found = new Map<string, number>();
  if (uuids.size === 0) return found;
  for (const name of await store.list("/local/domain") ?? []) {
    const machine = await store.read(`${domainPath(Number(name))}/vm`);
    const [, uuid = ""] = /^\/vm\/(.{36})$/.exec(machine ?? "") ?? [];
    if (/^[1-9]\d{0,4}$/.test(name) && uuids.has(uuid)) found.set(uuid, Number(name));
  }
  return found;
}
