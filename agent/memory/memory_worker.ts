/** Entry of the memory thread. The main thread's first message says how it is set up. */
import { openMachine } from "../../hypercall/native/mod.ts";
import { CallServer, workerEndpoint } from "../../hypercall/thread_calls.ts";
import { openXen } from "../../hypercall/xen.ts";
import { runMemoryLoop } from "./loop.ts";
import { MemoryService, type MemoryServiceOptions } from "./service.ts";

/** The first message. */
export interface MemorySetup extends MemoryServiceOptions {
  /** An eventfd that the main thread signals after each call. */
  readonly wakeupFd: number;
}

/** What the main thread calls. */
export class MemoryThread {
  readonly #service: MemoryService;
  #stopped = false;

  constructor(service: MemoryService) {
    this.#service = service;
  }

  get stopped(): boolean {
    return this.#stopped;
  }

  /** The loop ends, and everything that is held is let go. */
  stop(): void {
    this.#stopped = true;
    this.#service[Symbol.dispose]();
  }
}

self.addEventListener("message", (event) => void start((event as MessageEvent<MemorySetup>).data), { once: true });

async function start(setup: MemorySetup): Promise<void> {
  using machine = openMachine();
  using poller = machine.openPoller();
  using wakeup = machine.wakeupOf(setup.wakeupFd);
  const service = new MemoryService(machine, openXen(machine.hypercalls), poller, setup);
  const thread = new MemoryThread(service);
  using server = new CallServer(workerEndpoint(), service);
  using control = new CallServer(workerEndpoint(), thread, { channel: "control" });
  workerEndpoint().postMessage("ready", []);
  await runMemoryLoop(service, poller, wakeup, async () => {
    await server.turn();
    await control.turn();
  }, () => thread.stopped);
}
