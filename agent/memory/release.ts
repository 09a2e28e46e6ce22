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
  let asked = 0;
  for (; at < end && asked < RELEASE_BATCH; at++) {
    if (domain.state[at] !== PageState.nominated) continue;
    const result = xen.setMemoryType(domain.domid, HVMMEM_RAM_RW, domain.map.gfnAt(at), 1);
    if (result === 0) domain.state[at] = PageState.present;
    else asked++;
  }
  if (asked > 0) serve();
  if (at < domain.map.pages) {
    domain.releaseCursor = at;
    return true;
  }
  // A full ring refuses a request without a word: what still is nominated is asked for again.
  const left = domain.count(PageState.nominated) > 0;
  domain.releaseCursor = left ? 0 : undefined;
  return left;
}
