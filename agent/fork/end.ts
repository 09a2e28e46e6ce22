import { XenError } from "../../hypercall/errors.ts";
import type { Domid } from "../../hypercall/ports.ts";
import { domainRoots } from "./domain_tree.ts";
import type { Xen } from "../../hypercall/xen_api.ts";
import type { ShellPorts } from "./shell.ts";
import type { Store } from "./store.ts";

const GONE_TIMEOUT_MS = 30_000;

/**
 * Ends a domain of ours and removes what it left. With `keep`, its own clones keep the memory that they need of it. Resolves when
 * Xen has let go of it; rejects if somebody holds its memory for half a minute.
 */
export async function endDomain(ports: ShellPorts, domid: Domid, uuid: string, keep: boolean): Promise<void> {
  const { xen, store, memory, clock } = ports;
  const failures: unknown[] = [];
  // Each step is worth doing whatever became of the one before.
  const attempt = async (step: () => void | Promise<void>) => {
    try {
      await step();
    } catch (error) {
      // Gone or dying already: what it left is removed all the same.
      if (!(error instanceof XenError && error.code === "ESRCH")) failures.push(error);
    }
  };
  await attempt(() => pause(xen, domid));
  await attempt(() => memory.closeDomain(domid, keep));
  await attempt(() => xen.destroyDomain(domid));
  await attempt(() => removeNodes(store, domid, uuid));
  if (failures.length > 0) throw failures.length === 1 ? failures[0] : new AggregateError(failures);
  const deadline = clock.nowMs() + GONE_TIMEOUT_MS;
  while (xen.domainInfo(domid) !== undefined) {
    if (clock.nowMs() > deadline) throw new Error(`Domain ${domid} is destroyed, but somebody still holds its memory`);
    await clock.sleep(20);
  }
}

/** Keeps a domain from running on without its memory. */
function pause(xen: Xen, domid: Domid): void {
  try {
    xen.pauseDomain(domid);
  } catch (error) {
    // It is dying already.
    if (!(error instanceof XenError)) throw error;
  }
}

/** Removes what a domain that is gone left in xenstore. */
export async function removeNodes(store: Store, domid: number, uuid: string): Promise<void> {
  await Promise.all(domainRoots(domid, uuid).map((path) => store.remove(path)));
}
