import type { Wakeup } from "../../hypercall/ports.ts";
import { CallQueue } from "../../hypercall/thread_calls.ts";
import { workerUrl } from "../worker_url.ts";
import type { MemoryCalls } from "./calls.ts";
import type { ExchangeSetup, MemorySetup, MemoryThread } from "./memory_worker.ts";
import type { MemoryService, MemoryServiceOptions } from "./service.ts";

/** Most calls under way: one a shell that is made, and one that waits for each parent's release. */
const PENDING_MAX = 65_536;

/** The memory thread of this process. Disposing of it stops the thread, which lets go of all it holds. */
export interface RunningMemoryThread extends AsyncDisposable {
  readonly calls: MemoryCalls;
  /** Settles with the reason when the thread has ended. */
  readonly closed: Promise<Error>;
}

/** Starts the thread. Rejects if it cannot open the machine. */
export async function startMemoryThread(
  wakeup: Wakeup,
  options: MemoryServiceOptions & ExchangeSetup,
): Promise<RunningMemoryThread> {
  const worker = new Worker(workerUrl("agent/memory/memory_worker"), { type: "module", name: "memory" });
  const ready = new Promise<void>((resolve, reject) => {
    worker.addEventListener("message", () => resolve(), { once: true });
    worker.addEventListener("error", (event) => {
      event.preventDefault();
      reject(new Error(`Cannot start the memory thread: ${event.message}`));
    }, { once: true });
  });
  worker.postMessage({ ...options, wakeupFd: wakeup.fd } satisfies MemorySetup);
  await ready;
  const queue = new CallQueue<MemoryService>(worker, { wakeup, pendingMax: PENDING_MAX });
  const control = new CallQueue<MemoryThread>(worker, { wakeup, channel: "control" });
  return {
    calls: queue.calls,
    closed: queue.closed,
    async [Symbol.asyncDispose]() {
      await control.calls.stop();
      queue[Symbol.dispose]();
      control[Symbol.dispose]();
      worker.terminate();
    },
  };
}
