/** Entry of the memory thread. The main thread's first message says how it is set up. */
import { randomInt } from "node:crypto";
import { openMachine } from "../../hypercall/native/mod.ts";
import { CallServer, workerEndpoint } from "../../hypercall/thread_calls.ts";
import { openXen } from "../../hypercall/xen.ts";
import { Distribution, parseEndpoint } from "../../multicast/mod.ts";
import { nativeMemory } from "../../multicast/native_memory.ts";
import { nativeSealer } from "../../multicast/native_sealer.ts";
import { NativeUdp } from "../../multicast/native_udp.ts";
import { runMemoryLoop } from "./loop.ts";
import { MemoryService, type MemoryServiceOptions } from "./service.ts";

/** How pages are exchanged with other hosts. */
export interface ExchangeSetup {
  /** This host's endpoint, `10.0.0.1:7078`; without it no pages are exchanged. */
  readonly endpoint?: string;
  readonly timeToLive?: number;
}

/** The first message. */
export interface MemorySetup extends MemoryServiceOptions, ExchangeSetup {
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
  const nowMs = () => performance.now();
  const distribution = openDistribution(setup);
  const exchange = distribution === undefined ? undefined : { distribution, nowMs };
  const service = new MemoryService(machine, openXen(machine.hypercalls), poller, setup, exchange);
  const thread = new MemoryThread(service);
  using server = new CallServer(workerEndpoint(), service);
  using control = new CallServer(workerEndpoint(), thread, { channel: "control" });
  workerEndpoint().postMessage("ready", []);
  await runMemoryLoop(service, poller, wakeup, async () => {
    await server.turn();
    await control.turn();
  }, () => thread.stopped);
}

function openDistribution({ endpoint, timeToLive = 1 }: ExchangeSetup): Distribution | undefined {
  if (endpoint === undefined) return undefined;
  const local = parseEndpoint(endpoint);
  return new Distribution({
    unicast: new NativeUdp({ local, timeToLive }),
    multicast: new NativeUdp({ local, groups: true, timeToLive }),
    memory: nativeMemory(),
    sealer: nativeSealer(),
    random48: () => randomInt(2 ** 48 - 1),
  });
}
