/**
 * A network that exists in memory only, for tests: datagrams are lost, repeated, reordered and late as its seed says. Time moves when
 * it is told to. The same seed gives the same run.
 */
import type { Address, PinnedMemory } from "../hypercall/ports.ts";
import { type DatagramSocket, type Outgoing, type Packet, PACKET_CAPACITY, type SendResult } from "./ports.ts";
import type { Endpoint } from "./protocol.ts";

/** Numbers in [0, 1) from a seed (mulberry32). */
export function randomOf(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

export interface NetworkOptions {
  /** Shares of datagrams, of each receiver's: 0 to 1. */
  readonly loss: number;
  readonly duplicate: number;
  /** Share that is late by up to `reorderMs` more. */
  readonly reorder: number;
  readonly reorderMs: number;
  readonly delayMs: number;
  readonly multicast: boolean;
  /** Larger payloads are refused (EMSGSIZE). */
  readonly maxPayload: number;
  /** Bytes that wait at a socket; more are lost. */
  readonly receiveBuffer: number;
}

export const FAULTLESS: NetworkOptions = {
  loss: 0,
  duplicate: 0,
  reorder: 0,
  reorderMs: 3,
  delayMs: 0.1,
  multicast: true,
  maxPayload: 1472,
  receiveBuffer: 8 << 20,
};

interface Flight {
  readonly dueMs: number;
  readonly order: number;
  readonly to: SimSocket;
  readonly bytes: Uint8Array;
  readonly from: Endpoint;
}

export class SimNetwork {
  options: NetworkOptions;
  nowMs = 0;
  /** Bytes that sockets sent, each datagram once however many get it. */
  sentBytes = 0;
  dropped = 0;
  overflowed = 0;
  readonly random: () => number;
  readonly sockets: SimSocket[] = [];
  readonly #groups = new Map<string, Set<SimSocket>>();
  /** Binary heap by (due, order). */
  readonly #heap: Flight[] = [];
  #order = 0;

  constructor(seed: number, options: Partial<NetworkOptions> = {}) {
    this.options = { ...FAULTLESS, ...options };
    this.random = randomOf(seed);
  }

  open(local: Endpoint, groups = false): SimSocket {
    const socket = new SimSocket(this, this.sockets.length, local, groups);
    this.sockets.push(socket);
    return socket;
  }

  joined(group: number, port: number): Set<SimSocket> {
    const key = `${group}:${port}`;
    const members = this.#groups.get(key) ?? new Set();
    this.#groups.set(key, members);
    return members;
  }

  send(from: SimSocket, bytes: Uint8Array, to: Endpoint): void {
    this.sentBytes += bytes.length;
    if (to.ip >>> 28 === 14) {
      if (!this.options.multicast) return;
      for (const member of this.joined(to.ip, to.port)) this.#deliver(from, bytes, member);
      return;
    }
    const socket = this.sockets.find(({ local, groups }) => !groups && local.ip === to.ip && local.port === to.port);
    if (socket !== undefined) this.#deliver(from, bytes, socket);
  }

  /** The next arrival's time; undefined when nothing is under way. */
  get nextMs(): number | undefined {
    return this.#heap[0]?.dueMs;
  }

  /** Moves time; the sockets that got something. */
  advance(toMs: number): Set<SimSocket> {
    this.nowMs = Math.max(this.nowMs, toMs);
    const readable = new Set<SimSocket>();
    for (;;) {
      const first = this.#heap[0];
      if (first === undefined || first.dueMs > this.nowMs) return readable;
      this.#pop();
      if (first.to.arrive(first.bytes, first.from, this.options.receiveBuffer)) readable.add(first.to);
      else this.overflowed++;
    }
  }

  #deliver(from: SimSocket, bytes: Uint8Array, to: SimSocket): void {
    const { loss, duplicate, reorder, reorderMs, delayMs } = this.options;
    const cut = from.cut || to.cut;
    for (let copies = this.random() < duplicate ? 2 : 1; copies > 0; copies--) {
      if (cut || this.random() < Math.max(loss, to.loss)) {
        this.dropped++;
        continue;
      }
      const late = this.random() < reorder ? this.random() * reorderMs : 0;
      const order = this.#order++;
      this.#push({ dueMs: this.nowMs + delayMs + late, order, to, bytes: bytes.slice(), from: from.local });
    }
  }

  #push(flight: Flight): void {
    const heap = this.#heap;
    let at = heap.push(flight) - 1;
    while (at > 0) {
      const parent = (at - 1) >> 1;
      if (!before(heap[at], heap[parent])) return;
      swap(heap, at, parent);
      at = parent;
    }
  }

  #pop(): void {
    const heap = this.#heap;
    const last = heap.pop();
    if (last === undefined || heap.length === 0) return;
    heap[0] = last;
    let at = 0;
    for (;;) {
      let least = at;
      for (const child of [2 * at + 1, 2 * at + 2]) if (before(heap[child], heap[least])) least = child;
      if (least === at) return;
      swap(heap, at, least);
      at = least;
    }
  }
}

function before(a: Flight | undefined, b: Flight | undefined): boolean {
  if (a === undefined || b === undefined) return false;
  return a.dueMs < b.dueMs || (a.dueMs === b.dueMs && a.order < b.order);
}

function swap(heap: Flight[], a: number, b: number): void {
  const [x, y] = [heap[a], heap[b]];
  if (x === undefined || y === undefined) return;
  heap[a] = y;
  heap[b] = x;
}

export class SimSocket implements DatagramSocket {
  readonly fd: number;
  readonly local: Endpoint;
  readonly groups: boolean;
  /** Loss of what arrives here, where it is more than the network's. */
  loss = 0;
  /** Nothing gets in or out. */
  cut = false;
  sentBytes = 0;
  readonly #network: SimNetwork;
  #queue: { readonly bytes: Uint8Array; readonly from: Endpoint }[] = [];
  #queuedBytes = 0;

  constructor(network: SimNetwork, fd: number, local: Endpoint, groups: boolean) {
    this.#network = network;
    this.fd = fd;
    this.local = local;
    this.groups = groups;
  }

  arrive(bytes: Uint8Array, from: Endpoint, bound: number): boolean {
    if (this.#queuedBytes + bytes.length > bound) return false;
    this.#queue.push({ bytes, from });
    this.#queuedBytes += bytes.length;
    return true;
  }

  get readable(): boolean {
    return this.#queue.length > 0;
  }

  receive(packets: readonly Packet[]): number {
    const taken = this.#queue.splice(0, packets.length);
    taken.forEach(({ bytes, from }, at) => {
      const packet = packets[at];
      if (packet === undefined) return;
      packet.length = Math.min(bytes.length, PACKET_CAPACITY);
      packet.bytes.set(bytes.subarray(0, packet.length));
      packet.ip = from.ip;
      packet.port = from.port;
      this.#queuedBytes -= bytes.length;
    });
    return taken.length;
  }

  send(messages: readonly Outgoing[], count: number): SendResult {
    let failed = 0;
    for (const { packet, ip, port } of messages.slice(0, count)) {
      if (packet.length > this.#network.options.maxPayload) failed++;
      else {
        this.sentBytes += packet.length;
        this.#network.send(this, packet.bytes.subarray(0, packet.length), { ip, port });
      }
    }
    return { done: count, failed, tooLarge: failed > 0 };
  }

  join(group: number): boolean {
    this.#network.joined(group, this.local.port).add(this);
    return true;
  }

  leave(group: number): void {
    this.#network.joined(group, this.local.port).delete(this);
  }

  [Symbol.dispose](): void {
    this.#queue = [];
  }
}

/** Memory that is not pinned, for tests: its addresses are counted up, and mean nothing. */
export class SimMemory {
  #next = 0x10000n;

  allocate(byteLength: number): PinnedMemory {
    const address = this.#next as Address;
    this.#next += BigInt(Math.ceil(byteLength / 4096) * 4096);
    return { address, bytes: new Uint8Array(byteLength), [Symbol.dispose]() {} };
  }
}
