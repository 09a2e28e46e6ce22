import type { Poller, Wakeup } from "../../hypercall/ports.ts";
import type { MemoryService } from "./service.ts";

/**
 * The memory thread: sleeps in `poller` until a ring, or a call from the main thread (which signals `wakeup`), needs it.
 * What can wait is done in between. `turn` gives the thread's event loop one turn, in which calls are performed.
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
    const readable = poller.wait(more ? 0 : -1);
    for (const fd of readable) {
      if (fd === wakeup.fd) wakeup.drain();
      else service.onReadable(fd);
    }
    if (more || service.takeSettled() || readable.includes(wakeup.fd)) await turn();
    more = service.background();
  }
}
