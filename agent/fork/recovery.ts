/** What the agent does first: undo what an earlier one, which died, has left. */
import { getLogger } from "@logtape/logtape";
import type { Domid, Gfn } from "../../hypercall/ports.ts";
import { endDomain } from "./end.ts";
import type { Journal } from "./journal.ts";
import type { Parents } from "./parent.ts";
import type { ShellPorts } from "./shell.ts";
import { uuidText } from "./uuid.ts";

export interface Recovered {
  /** Clones and shells that were ended. */
  readonly ended: number;
  /** Parents that were let go: they run, and their memory is being released. */
  readonly parents: number;
}

/**
 * Ends the clones of an agent that died, since their memory died with it, and lets their parents go on: a suspended one is resumed,
 * its ring is taken over, and nominated pages are given back.
 */
export async function recover(ports: ShellPorts, journal: Journal, parents: Parents): Promise<Recovered> {
  const log = getLogger(["snowflock", "recovery"]);
  const { xen, memory } = ports;
  const byUuid = new Map(xen.listDomains().map((info) => [uuidText(info.handle), info]));
  let ended = 0;
  for (const uuid of journal.shells) {
    const info = byUuid.get(uuid);
    if (info !== undefined) {
      log.warn("a clone of an agent that died is ended", { domid: info.domid });
      await endDomain(ports, info.domid, uuid, false);
      byUuid.delete(uuid);
      ended++;
    }
    journal.removeShell(uuid);
  }
  let taken = 0;
  for (const parent of journal.parents) {
    const info = byUuid.get(parent.uuid);
    const domid = parent.domid as Domid;
    if (info === undefined || info.domid !== domid || info.dying) {
      journal.removeParent(parent.uuid);
      continue;
    }
    log.warn("a parent that an agent held when it died is let go", { domid });
    const ranges = parent.ranges.map(([first, pages]) => ({ first: BigInt(first) as Gfn, pages }));
    await memory.takeOver(domid, ranges, BigInt(parent.ring) as Gfn, info.maxVcpuId + 1);
    await parents.recover(domid);
    memory.released(domid).then(() => journal.removeParent(parent.uuid)).catch((error) =>
      log.error("a parent's memory was not released", { domid, error })
    );
    taken++;
  }
  return { ended, parents: taken };
}
