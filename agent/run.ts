/** `snowflock agent`: opens the machine, runs the agent and its API until a signal. */
import { getLogger } from "@logtape/logtape";
import type { Machine } from "../hypercall/ports.ts";
import { openXen } from "../hypercall/xen.ts";
import { connectXenstored, openXenstore } from "../hypercall/xenstore/mod.ts";
import { Agent } from "./agent.ts";
import { type LogBuffer, serveApi } from "./api/mod.ts";
import type { Config } from "./config/mod.ts";
import { journalFile } from "./fork/journal.ts";
import { systemClock } from "./fork/timing.ts";
import { GuestService } from "./guest/mod.ts";
import { FreePages } from "./free_pages.ts";
import { guestStore } from "./guest_store.ts";
import { linkPlumber } from "./link_plumber.ts";
import { startPeers } from "./peers/mod.ts";
import { policyOf } from "./policy/mod.ts";
import { startMemoryThread } from "./memory/thread.ts";

/** Copies of pages that the agent keeps, as a share of dom0's memory. */
const ARENA_SHARE = 0.5;
const PAGE_BYTES = 4096;

export interface RunOptions {
  readonly config: Config;
  readonly version: string;
  readonly openMachine: () => Machine;
  readonly logs: LogBuffer;
  /** Ends the agent. */
  readonly signal: AbortSignal;
}

/** Resolves when the agent has ended and has let go of everything. Rejects if it cannot start, or a part of it dies. */
export async function runAgent({ config, version, openMachine, logs, signal }: RunOptions): Promise<void> {
  const log = getLogger(["snowflock", "agent"]);
  const host = config.host ?? Deno.hostname().split(".")[0] ?? "localhost";
  await Deno.mkdir(config.stateDirectory, { recursive: true, mode: 0o700 });
  await using stack = new AsyncDisposableStack();
  const machine = stack.use(openMachine());
  const xen = openXen(machine.hypercalls);
  const xenstore = stack.use(openXenstore(await connectXenstored()));
  const wakeup = stack.use(machine.openWakeup());
  const arenaPages = Math.floor(Deno.systemMemoryInfo().total * ARENA_SHARE / PAGE_BYTES);
  const { listen } = config.cluster;
  const exchange = listen === undefined
    ? {}
    : { endpoint: `${listen.address}:${config.multicast.port}`, timeToLive: config.multicast.timeToLive };
  const memory = stack.use(await startMemoryThread(wakeup, { arenaPages, ...exchange }));
  // Before the agent, so that it ends after it: guests on other hosts are ended through it.
  const peers = await startPeers(config, { host, version, memory: memory.calls, nowMs: () => performance.now() });
  if (peers !== undefined) stack.use(peers);
  const agent = stack.use(
    await Agent.start({
      machine,
      xen,
      memory: memory.calls,
      store: xenstore,
      plumber: linkPlumber,
      clock: systemClock,
      freePages: new FreePages({
        xen,
        foreignMemory: machine.foreignMemory,
        store: xenstore,
        nowMs: () => performance.now(),
      }),
      journal: journalFile(`${config.stateDirectory}/journal.json`),
      placement: policyOf(config.cluster.policy),
      ...(peers === undefined ? {} : { remoteHosts: peers.hosts, share: peers.share }),
    }, { host, ...config.limits, fill: config.memory.fill }),
  );
  if (peers !== undefined) stack.use(await peers.serve({ local: agent.local, xen, plumber: linkPlumber }));
  if (config.guests.enabled) {
    stack.use(
      await GuestService.start({
        store: guestStore(xenstore),
        engine: agent.engine,
        limits: { requestsPerSecond: config.guests.requestsPerSecond, burst: config.guests.burst },
      }),
    );
  }
  stack.use(
    await serveApi({
      engine: agent.engine,
      version,
      host,
      logs,
      socket: config.socket,
    }),
  );
  log.info("the agent is ready", { host, socket: config.socket });
  const lost = Promise.race([memory.closed, xenstore.closed]).then((error) => {
    throw error;
  });
  await Promise.race([
    lost,
    new Promise<void>((resolve) => {
      if (signal.aborted) resolve();
      else signal.addEventListener("abort", () => resolve(), { once: true });
    }),
  ]);
  log.info("the agent ends its clones and lets their parents go");
}
