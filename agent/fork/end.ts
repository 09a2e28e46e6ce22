import { XenError } from "../../hypercall/errors.ts";
import type { Domid } from "../../hypercall/ports.ts";
import { domainRoots } from "./domain_tree.ts";
import type { ShellPorts } from "./shell.ts";
import type { Store } from "./store.ts";

const GONE_TIMEOUT_MS = 30_000;

/**
 * Ends a domain of ours and removes what it left. With `keep`, its own clones keep the memory that they need of it. Resolves when
 * Xen has let go of it; rejects if somebody holds its memory for half a minute.
 */
export async function endDomain(ports: ShellPorts, domid: Domid, uuid: string, keep: boolean): Promise<void> {
  const { xen, store, memory, clock } = ports;
  try {
    xen.pauseDomain(domid);
  } catch (error) {
    if (!(error instanceof XenError)) throw error;
    // Gone or dying already: what it left is removed all the same.
  }
  await memory.closeDomain(domid, keep);
  try {
    xen.destroyDomain(domid);
  } catch (error) {
    if (!(error instanceof XenError) || error.code !== "ESRCH") throw error;
  }
  await removeNodes(store, domid, uuid);
  const deadline = clock.nowMs() + GONE_TIMEOUT_MS;
  while (xen.domainInfo(domid) !== undefined) {
    if (clock.nowMs() > deadline) throw new Error(`Domain ${domid} is destroyed, but somebody still holds its memory`);
    await clock.sleep(20);
  }
}

/** Removes what a domain that is gone left in xenstore. */
export async function removeNodes(store: Store, domid: number, uuid: string): Promise<void> {
  await Promise.all(domainRoots(domid, uuid).map((path) => store.remove(path)));
}
