/** The peers of this host: those that its clones can be on, and those that it has clones of. */
import { randomBytes } from "node:crypto";
import { setTimeout as delay } from "node:timers/promises";
import type { Config } from "../config/mod.ts";
import type { CloneHost, PageChannel } from "../fork/clone_host.ts";
import type { VifPlumber } from "../fork/vif.ts";
import type { MemoryCalls } from "../memory/calls.ts";
import type { Xen } from "../../hypercall/xen_api.ts";
import { peerApp } from "./app.ts";
import { PeerClient } from "./client.ts";
import { FamilyKeys, sharer } from "./family_keys.ts";
import { Guests, type HostHere } from "./guests.ts";
import { listenForPeers } from "./https_server.ts";
import { type LinkOptions, PeerLink, type PeerState } from "./link.ts";
import { RemoteHost } from "./remote_host.ts";
import { loadTls, type TlsIdentity } from "./tls.ts";
import { MAX_HOLD_MS } from "./wire.ts";

/** XEN_SYSCTL_cpu_policy_hvm_max (public/sysctl.h). */
const HVM_MAX = 3;
/** Coordinators of guests that end with this agent have this long to take the news. */
const FAREWELL_MS = 1000;

export interface PeersParts {
  /** This host's name. */
  readonly host: string;
  /** Of this program. */
  readonly version: string;
  readonly memory: Pick<
    MemoryCalls,
    "serveSnapshot" | "openRemoteSnapshot" | "releaseSnapshot" | "snapshotLost" | "fill"
  >;
  readonly nowMs: () => number;
}

/** What peers need of this host, once it is ready for clones. */
export interface HereParts {
  readonly local: HostHere;
  readonly xen: Pick<Xen, "systemCpuPolicy">;
  readonly plumber: Pick<VifPlumber, "exists">;
}

export interface PeersOptions {
  readonly peers: Config["cluster"]["peers"];
  readonly listen: { readonly address: string; readonly port: number };
  readonly tls: TlsIdentity;
  readonly heartbeatMs: number;
  readonly downAfterMs: number;
  readonly fill: boolean;
  readonly mode: "multicast" | "unicast";
  /** Where this host serves pages, `10.0.0.1:7078`. */
  readonly pageServer: string;
}

/** The peers that a config names. Without `cluster.listen` there are none. */
export async function startPeers(config: Config, parts: PeersParts): Promise<Peers | undefined> {
  const { listen, peers, certificate, key, authority, heartbeatMs, downAfterMs } = config.cluster;
  if (listen === undefined || certificate === undefined || key === undefined || authority === undefined) {
    return undefined;
  }
  return new Peers({
    peers,
    listen,
    tls: await loadTls({ certificate, key, authority }),
    heartbeatMs,
    downAfterMs,
    fill: config.memory.fill,
    mode: config.multicast.mode,
    pageServer: `${listen.address}:${config.multicast.port}`,
  }, parts);
}

/** Dispose of it after the engine, which ends its clones on other hosts through it. */
export class Peers implements AsyncDisposable {
  /** Hosts that clones can be on besides this one. */
  readonly hosts: readonly CloneHost[];
  /** For the engine: lets other hosts have a snapshot. */
  readonly share: (snapshot: string, family: string) => Promise<PageChannel>;
  readonly #links: readonly PeerLink[];
  readonly #parts: PeersParts;
  readonly #options: PeersOptions;
  readonly #keys = new FamilyKeys();
  readonly #instance = randomBytes(16).toString("hex");

  constructor(options: PeersOptions, parts: PeersParts) {
    this.#parts = parts;
    this.#options = options;
    const linkOptions: LinkOptions = {
      instance: this.#instance,
      heartbeatMs: Math.min(options.heartbeatMs, MAX_HOLD_MS),
      downAfterMs: options.downAfterMs,
      nowMs: parts.nowMs,
    };
    this.#links = options.peers.map((peer) => new PeerLink(new PeerClient(parts.host, peer, options.tls), linkOptions));
    this.hosts = this.#links.map((link) => new RemoteHost(link, options.fill));
    this.share = sharer(this.#keys, parts.memory, options.mode, options.pageServer);
    for (const link of this.#links) link.start();
  }

  states(): PeerState[] {
    return this.#links.map((link) => link.state());
  }

  /** Tells of each peer that comes up or goes down. */
  onChange(listener: (peer: string, up: boolean, reason: string) => void): void {
    for (const link of this.#links) link.onChange((up, reason) => listener(link.name, up, reason));
  }

  /**
   * Lets peers have clones on this host, until disposed of: then these clones end, and their coordinators are told. Dispose of it
   * before the engine.
   */
  async serve({ local, xen, plumber }: HereParts): Promise<AsyncDisposable & { readonly port: number }> {
    const { memory, nowMs, host, version } = this.#parts;
    const { listen, tls, peers, heartbeatMs, downAfterMs } = this.#options;
    const guests = new Guests({
      local,
      memory,
      keys: this.#keys,
      cpuPolicy: () => xen.systemCpuPolicy(HVM_MAX),
      deviceExists: (name) => plumber.exists(name),
      nowMs,
    }, downAfterMs);
    const names = peers.map(({ name }) => name);
    const app = peerApp(guests, { host, instance: this.#instance, version, peers: names });
    const listener = await listenForPeers({ ...listen, tls, peers: names.length }, app);
    const timer = setInterval(() => guests.lapse(), heartbeatMs);
    return {
      port: listener.port,
      async [Symbol.asyncDispose]() {
        clearInterval(timer);
        await guests.endGuests(`the agent of its host ${host} has ended`);
        const deadline = nowMs() + FAREWELL_MS;
        while (guests.hasNews && nowMs() < deadline) await delay(10);
        await listener[Symbol.asyncDispose]();
        await guests[Symbol.asyncDispose]();
      },
    };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(this.#links.map((link) => link[Symbol.asyncDispose]()));
  }
}
