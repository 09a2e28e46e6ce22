/** The real machine: dom0 of a Xen host. */
import type { Machine } from "../ports.ts";
import { EventChannels } from "./event_channels.ts";
import { Grants } from "./grants.ts";
import { Libc } from "./libc.ts";
import { EpollPoller, EventfdWakeup } from "./poller.ts";
import { Privcmd } from "./privcmd.ts";

/**
 * The machine, for the calling thread: each Worker opens its own, and what it gives stays in that thread (descriptors, such as a
 * wake-up's, belong to the process). Throws a XenError where there is no Xen, or too few rights.
 */
export function openMachine(): Machine {
  const libc = new Libc();
  const privcmd = new Privcmd(libc);
  return {
    hypercalls: privcmd,
    foreignMemory: privcmd,
    openEventChannels: () => new EventChannels(libc),
    openGrants: () => new Grants(libc),
    openPoller: () => new EpollPoller(libc),
    openWakeup: () => new EventfdWakeup(libc),
    wakeupOf: (fd) => new EventfdWakeup(libc, fd),
    [Symbol.dispose]: () => privcmd[Symbol.dispose](),
  };
}
