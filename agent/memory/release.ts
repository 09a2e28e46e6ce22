import { errno } from "../../hypercall/errors.ts";
import type { Xen } from "../../hypercall/xen_api.ts";
import { type HeldDomain, PageState } from "./held_domain.ts";

/** Nominated pages that are given back at a time: each takes one of the ring's eight slots, which vCPUs need too. */
const RELEASE_BATCH = 4;
const RELEASE_SCAN = 4096;
const HVMMEM_RAM_RW = 0;

/**
 * Gives a few nominated pages back: `set_mem_type` on one raises the request that a touch would, and `serve` answers it. Whether there
 * may be more.
 */
export function releaseSome(xen: Xen, domain: HeldDomain, serve: () => void): boolean {
  let at = domain.releaseCursor ?? 0;
  const end = Math.min(domain.map.pages, at + RELEASE_SCAN);
  const asked: number[] = [];
  for (; at < end && asked.length < RELEASE_BATCH; at++) {
    if (domain.state[at] !== PageState.nominated) continue;
    const result = xen.setMemoryType(domain.domid, HVMMEM_RAM_RW, domain.map.gfnAt(at), 1);
    // EINVAL: there is no page any more, the guest has given it away.
    if (result === 0 || result === -errno("EINVAL")) domain.state[at] = PageState.present;
    else asked.push(at);
  }
  if (asked.length > 0) serve();
  for (const index of asked) {
    // Nobody asks for a page twice: one that an agent which died was asked for is on its way in until somebody brings it.
    if (domain.state[index] !== PageState.nominated) continue;
    if (xen.prep(domain.domid, domain.map.gfnAt(index), 0n) === 0) domain.state[index] = PageState.present;
  }
  if (at < domain.map.pages) {
    domain.releaseCursor = at;
    return true;
  }
  // A full ring refuses a request without a word: what still is nominated is asked for again.
  const left = domain.count(PageState.nominated) > 0;
  domain.releaseCursor = left ? 0 : undefined;
  return left;
}
