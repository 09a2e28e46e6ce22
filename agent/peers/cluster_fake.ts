/** Hosts in one process: real TLS on loopback between them; below the ports, clones and memory are books only. */
import { join } from "node:path";
import { CpuidLeaf } from "../../hypercall/abi/mod.ts";
import type { Domid, Gfn } from "../../hypercall/ports.ts";
import type { CpuPolicy } from "../../hypercall/xen_api.ts";
import type { CloneName, CloneNews, Prepared, PrepareRequest, Started, StartRequest } from "../fork/clone_host.ts";
import type { Descriptor, GuestShape } from "../fork/descriptor.ts";
import type { FamilyChannel, RemoteSource } from "../memory/exchange.ts";
import { MemoryMap } from "../memory/memory_map.ts";
import type { HostHere } from "./guests.ts";
import { keygen } from "./keygen.ts";
import { Peers } from "./start.ts";
import { loadTls, type TlsIdentity } from "./tls.ts";
import { FakeCable } from "./cable_fake.ts";

export const FAMILY = "f".repeat(32);
export const SNAPSHOT = "5".repeat(32);

/** A policy with an FPU, and `features` of leaf 7 in b. */
export function cpuPolicy(features = 0): CpuPolicy {
  const leaves = [
    { leaf: 0, subleaf: 0xffff_ffff, a: 7, b: 0x756e6547, c: 0x6c65746e, d: 0x49656e69 },
    { leaf: 1, subleaf: 0xffff_ffff, a: 0, b: 0, c: 0, d: 1 },
    { leaf: 7, subleaf: 0, a: 0, b: features, c: 0, d: 0 },
    { leaf: 0x8000_0000, subleaf: 0xffff_ffff, a: 0x8000_0008, b: 0, c: 0, d: 0 },
  ].map((leaf) => CpuidLeaf.encode(leaf));
  const bytes = new Uint8Array(leaves.length * CpuidLeaf.size);
  leaves.forEach((leaf, at) => bytes.set(leaf, at * CpuidLeaf.size));
  return { leaves: bytes, msrs: new Uint8Array() };
}

export function guestShape(policy = cpuPolicy()): GuestShape {
  return {
    vcpus: 1,
    maxPages: 1024n,
    memoryKib: 4096n,
    memory: { map: new MemoryMap([{ first: 0n as Gfn, pages: 1024 }]), frames: new Map([[1, 0xfeffcn as Gfn]]) },
    cpuPolicy: policy,
    tsc: { mode: 0, khz: 1_000_000, incarnation: 0, elapsedNs: 5n },
    vifs: [{ handle: 0, bridge: "bridge-there" }],
  };
}

export function descriptorOf(shape = guestShape()): Descriptor {
  return {
    ...shape,
    snapshot: SNAPSHOT,
    family: FAMILY,
    parentName: "parent",
    context: Uint8Array.from({ length: 9000 }, (_, at) => at & 255),
    params: new Map([[34, 1n]]),
    identPt: new Uint8Array(),
    hot: Uint32Array.of(1, 2, 3),
    free: Uint32Array.of(9, 10),
  };
}

interface FakeClone extends CloneName {
  readonly ticket: string;
  readonly family: string;
  readonly domid: number;
  running: boolean;
}

/** Keeps the books that a LocalHost keeps. */
export class FakeHost implements HostHere {
  readonly name: string;
  readonly clones = new Map<number, FakeClone>();
  readonly starts: StartRequest[] = [];
  readonly prepares: PrepareRequest[] = [];
  room = 100;
  /** Awaited before shells are made. */
  gate: Promise<void> = Promise.resolve();
  /** Awaited before clones are started. */
  startGate: Promise<void> = Promise.resolve();
  /** Clones that cannot be started, by id. */
  readonly broken = new Set<number>();
  readonly #listeners: ((news: CloneNews) => void)[] = [];
  /** Shells that were ever made. */
  made = 0;

  constructor(name: string) {
    this.name = name;
  }

  capacity(_shape: GuestShape, wanted: number): Promise<number> {
    return Promise.resolve(Math.min(this.room, wanted));
  }

  async prepare(request: PrepareRequest): Promise<Prepared[]> {
    this.prepares.push(request);
    await this.gate;
    return request.clones.map((clone) => {
      const domid = ++this.made;
      this.clones.set(domid, { ...clone, ticket: request.ticket, family: request.family, domid, running: false });
      return { id: clone.id, domid, shellMs: 1.5 };
    });
  }

  async start(request: StartRequest): Promise<Started[]> {
    this.starts.push(request);
    await this.startGate;
    return [...request.nodes.keys()].map((id) => {
      const clone = this.find(request.ticket, id);
      if (clone === undefined) return { id, error: "its shell is gone" };
      if (this.broken.has(id)) {
        this.clones.delete(clone.domid);
        return { id, error: "it cannot be started" };
      }
      clone.running = true;
      return { id, restoreMs: 2.5 };
    });
  }

  exited(domid: number, status: number, data: string): Promise<boolean> {
    const clone = this.clones.get(domid);
    if (clone === undefined || !this.clones.delete(domid)) return Promise.resolve(false);
    this.tell({ kind: "exited", ticket: clone.ticket, id: clone.id, status, data, memory: {} });
    return Promise.resolve(true);
  }

  awake(domid: number): void {
    const clone = this.clones.get(domid);
    if (clone !== undefined) this.tell({ kind: "running", ticket: clone.ticket, id: clone.id });
  }

  cloneOf(domid: number): { ticket: string; id: number; family: string } | undefined {
    const clone = this.clones.get(domid);
    return clone === undefined ? undefined : { ticket: clone.ticket, id: clone.id, family: clone.family };
  }

  end(ticket: string, ids: readonly number[]): Promise<void> {
    for (const id of ids) {
      const clone = this.find(ticket, id);
      if (clone !== undefined) this.clones.delete(clone.domid);
    }
    return Promise.resolve();
  }

  memory(ticket: string): Promise<ReadonlyMap<number, Readonly<Record<string, number>>>> {
    const mine = [...this.clones.values()].filter((clone) => clone.ticket === ticket);
    return Promise.resolve(new Map(mine.map(({ id }) => [id, { pages: 1024, absent: 7 }])));
  }

  lose(domid: Domid, reason: string): Promise<void> {
    const clone = this.clones.get(domid);
    if (clone !== undefined && this.clones.delete(domid)) {
      this.tell({ kind: "ended", ticket: clone.ticket, id: clone.id, reason });
    }
    return Promise.resolve();
  }

  onNews(listener: (news: CloneNews) => void): void {
    this.#listeners.push(listener);
  }

  tell(news: CloneNews): void {
    for (const listener of this.#listeners) listener(news);
  }

  find(ticket: string, id: number): FakeClone | undefined {
    return [...this.clones.values()].find((clone) => clone.ticket === ticket && clone.id === id);
  }
}

/** Keeps the books of snapshots that a memory thread keeps. */
export class FakeMemory {
  readonly served = new Map<string, FamilyChannel>();
  readonly opened: RemoteSource[] = [];
  readonly released: string[] = [];
  readonly lost: string[] = [];
  /** What a fill waits for. */
  fills: () => Promise<void> = () => Promise.resolve();

  serveSnapshot(id: string, channel: FamilyChannel): Promise<void> {
    this.served.set(id, channel);
    return Promise.resolve();
  }

  openRemoteSnapshot(source: RemoteSource): Promise<void> {
    if (this.opened.some(({ snapshot }) => snapshot === source.snapshot)) {
      return Promise.reject(new Error(`Cannot open snapshot ${source.snapshot}: it exists`));
    }
    this.opened.push(source);
    return Promise.resolve();
  }

  releaseSnapshot(id: string): Promise<void> {
    this.released.push(id);
    return Promise.resolve();
  }

  snapshotLost(id: string): Promise<void> {
    this.lost.push(id);
    return Promise.resolve();
  }

  fill(_domid: Domid): Promise<void> {
    return this.fills();
  }
}

export interface ClusterOptions {
  readonly heartbeatMs?: number;
  readonly downAfterMs?: number;
  readonly fill?: boolean;
}

export interface Node extends AsyncDisposable {
  readonly name: string;
  readonly port: number;
  readonly host: FakeHost;
  readonly memory: FakeMemory;
  readonly peers: Peers;
  /** What this host's processor offers. */
  cpu: CpuPolicy;
  /** Stops serving guests, as an agent does that ends. */
  stopServing(): Promise<void>;
}

function freePort(): number {
  using listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  return listener.addr.port;
}

export class Cluster implements AsyncDisposable {
  readonly #stack = new AsyncDisposableStack();
  readonly #ports = new Map<string, number>();
  /** From a host to another: `a>b`. */
  readonly #cables = new Map<string, FakeCable>();
  readonly #options: Required<ClusterOptions>;
  readonly directory: string;

  private constructor(directory: string, options: ClusterOptions) {
    this.directory = directory;
    this.#options = { heartbeatMs: 50, downAfterMs: 400, fill: false, ...options };
  }

  static async make(names: readonly string[], options: ClusterOptions = {}): Promise<Cluster> {
    const cluster = new Cluster(await Deno.makeTempDir(), options);
    cluster.#stack.defer(() => Deno.remove(cluster.directory, { recursive: true }));
    await keygen(cluster.directory, names);
    for (const name of names) cluster.#ports.set(name, freePort());
    for (const from of names) {
      for (const [to, port] of cluster.#ports) {
        if (from !== to) cluster.#cables.set(`${from}>${to}`, cluster.#stack.use(new FakeCable(port)));
      }
    }
    return cluster;
  }

  /** Cuts a host off from all others, both ways. */
  cut(name: string): void {
    for (const [ends, cable] of this.#cables) if (ends.split(">").includes(name)) cable.cut();
  }

  mend(): void {
    for (const cable of this.#cables.values()) cable.mend();
  }

  port(name: string): number {
    return this.#ports.get(name) ?? 0;
  }

  tls(name: string): Promise<TlsIdentity> {
    return loadTls({
      authority: join(this.directory, "authority.pem"),
      certificate: join(this.directory, `${name}.pem`),
      key: join(this.directory, `${name}.key`),
    });
  }

  /** An agent of host `name`, with all others of the cluster as its peers. */
  async start(name: string, host = new FakeHost(name)): Promise<Node> {
    const memory = new FakeMemory();
    const nowMs = () => performance.now();
    const peers = new Peers({
      peers: [...this.#ports].filter(([other]) => other !== name).map(([other]) => ({
        name: other,
        address: "127.0.0.1",
        port: this.#cables.get(`${name}>${other}`)?.port ?? 0,
      })),
      listen: { address: "127.0.0.1", port: this.port(name) },
      tls: await this.tls(name),
      mode: "multicast",
      pageServer: "127.0.0.1:7078",
      ...this.#options,
    }, { host: name, version: "1.2.3", memory, nowMs });
    const stack = this.#stack.use(new AsyncDisposableStack());
    stack.use(peers);
    const node = {
      name,
      port: this.port(name),
      host,
      memory,
      peers,
      cpu: cpuPolicy(),
      stopServing: async () => await serving[Symbol.asyncDispose](),
      [Symbol.asyncDispose]: () => stack.disposeAsync(),
    };
    const serving = await peers.serve({
      local: host,
      xen: { systemCpuPolicy: () => node.cpu },
      plumber: { exists: (device) => Promise.resolve(device === "bridge-here") },
    });
    stack.use(serving);
    return node;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.#stack.disposeAsync();
  }
}

/** Waits until something is so. */
export async function until(what: string, isSo: () => boolean, timeoutMs = 10_000): Promise<void> {
  const deadline = performance.now() + timeoutMs;
  while (!isSo()) {
    if (performance.now() > deadline) throw new Error(`In vain waited for: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}
