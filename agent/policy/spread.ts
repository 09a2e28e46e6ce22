import type { Placement } from "../fork/placement.ts";

/** One clone a host, round after round, as long as there is room. */
export const spread: Placement = {
  allocate(_ticket, wanted, rooms) {
    const placed = new Map<string, number>();
    let left = wanted;
    while (left > 0) {
      const open = [...rooms].filter(([host, room]) => (placed.get(host) ?? 0) < room);
      if (open.length === 0) break;
      for (const [host] of open) {
        if (left === 0) break;
        placed.set(host, (placed.get(host) ?? 0) + 1);
        left--;
      }
    }
    return Promise.resolve(placed);
  },
  release: () => Promise.resolve(),
};
