import { EngineError, type JoinOptions } from "../api/engine.ts";
import type { Ticket } from "./tickets.ts";
import type { Clock } from "./timing.ts";

/** Resolves when the ticket has ended. Rejects with an EngineError `timeout` or `aborted`; the ticket goes on then. */
export async function ticketEnd(ticket: Ticket, clock: Clock, { signal, timeoutMs }: JoinOptions): Promise<void> {
  if (ticket.ended) return;
  await new Promise<void>((resolve, reject) => {
    const stop = new AbortController();
    const done = (finish: () => void) => () => {
      ticket.waiters.delete(wake);
      stop.abort();
      finish();
    };
    const wake = done(resolve);
    const giveUp = done(() => reject(new EngineError("aborted", "The wait was given up")));
    ticket.waiters.add(wake);
    signal?.addEventListener("abort", giveUp, { once: true, signal: stop.signal });
    if (signal?.aborted) giveUp();
    if (timeoutMs === undefined) return;
    clock.sleep(timeoutMs).then(() => {
      if (!ticket.waiters.has(wake)) return;
      done(() => reject(new EngineError("timeout", `Clones of ${ticket.name} still run after ${timeoutMs} ms`)))();
    });
  });
}
