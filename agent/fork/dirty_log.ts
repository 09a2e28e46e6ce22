/** Xen's log of the pages that a domain writes. */
import { getLogger } from "@logtape/logtape";
import { XenError } from "../../hypercall/errors.ts";
import type { Domid } from "../../hypercall/ports.ts";
import type { Xen } from "../../hypercall/xen_api.ts";
import type { MemoryMap } from "../memory/memory_map.ts";

const OFF_ATTEMPTS = 3;

/** Ends the log. A domain whose log stays on cannot be forked again: hence more than one attempt. */
export function logDirtyOff(xen: Xen, domid: Domid): void {
  for (let attempt = 1; attempt <= OFF_ATTEMPTS; attempt++) {
    try {
      return xen.logDirtyOff(domid);
    } catch (error) {
      if (!(error instanceof XenError)) throw error;
      // EINVAL tells that it is off already, among other things.
      if (attempt < OFF_ATTEMPTS || error.code === "EINVAL" || error.code === "ESRCH") continue;
      getLogger(["snowflock", "parent"]).warn("writes of a parent are still logged", { domid, error });
    }
  }
}

/** Indexes of the pages that were written since the log was begun. */
export function dirtyPages(xen: Xen, domid: Domid, map: MemoryMap): Uint32Array {
  const bitmap = xen.logDirtyPeek(domid, xen.maximumGfn(domid) + 1n);
  const hot: number[] = [];
  let index = 0;
  for (const { first, pages } of map.ranges) {
    for (let page = 0; page < pages; page++, index++) {
      const gfn = first + BigInt(page);
      const byte = bitmap[Number(gfn >> 3n)] ?? 0;
      if (byte === 0) {
        // Eight clean pages at once; the runs are long and mostly clean.
        const skip = Math.min(7 - Number(gfn & 7n), pages - page - 1);
        page += skip;
        index += skip;
      } else if ((byte >> Number(gfn & 7n)) & 1) hot.push(index);
    }
  }
  return Uint32Array.from(hot);
}
