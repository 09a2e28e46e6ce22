import type { Poller, Wakeup } from "../hypercall/ports.ts";
import type { DiskService } from "./disk_service.ts";

/**
 * The disk thread: sleeps in `poller` until a ring, blocks of another host, or a command (whose sender signals `wakeup`) need
 * it. What can wait is done while nothing else is to do. `turn` gives the thread's event loop one turn, in which commands are
 * performed.
 */
export async function runServiceLoop(
  service: DiskService,
  poller: Poller,
  wakeup: Wakeup,
  turn: () => Promise<void>,
  stopped: () => boolean,
): Promise<void> {
  poller.add(wakeup.fd);
  let more = false;
  let chores = false;
  while (!stopped()) {
    const readable = poller.wait(more || chores ? 0 : -1);
    let commanded = false;
    for (const fd of readable) {
      if (fd === wakeup.fd) {
        wakeup.drain();
        commanded = true;
      } else {
        service.onReadable(fd);
      }
    }
    if (commanded) await turn();
    more = service.run();
    if (service.takeNews()) await turn();
    // A fork leaves chores behind, and a command made it; they wait for a moment without requests.
    if (commanded) chores = true;
    if (chores && !more && readable.length === 0) chores = service.housekeep();
  }
}
