import type { Poller, Wakeup } from "../../hypercall/ports.ts";
import type { MemoryService } from "./service.ts";

/**
 * The memory thread: sleeps in `poller` until a ring, the network, a timer, or a call from the main thread (which signals
 * `wakeup`) needs it. What can wait is done in between. `turn` gives the thread's event loop a turn, in which calls are performed.
 */
export async function runMemoryLoop(
  service: MemoryService,
  poller: Poller,
  wakeup: Wakeup,
  turn: () => Promise<void>,
  stopped: () => boolean,
): Promise<void> {
  poller.add(wakeup.fd);
  let more = false;
  while (!stopped()) {
    const due = service.dueMs();
    const readable = poller.wait(more ? 0 : due === undefined ? -1 : Math.ceil(due));
    for (const fd of readable) {
      if (fd === wakeup.fd) wakeup.drain();
      else service.onReadable(fd);
    }
    if ((service.dueMs() ?? 1) <= 0) service.onTimer();
    if (more || service.takeSettled() || readable.includes(wakeup.fd)) await turn();
    more = !stopped() && service.background();
  }
}
