/**
 * Hosts on a simulated network, for tests: each a whole {@link Distribution}. Blocks have a content that follows from object and
 * index, and every block that arrives is compared with it.
 */
import { Distribution, type DistributionOptions } from "./distribution.ts";
import type { BlockSource, Packet, ReceivedBlock, Sealer, SealerFactory } from "./ports.ts";
import { BLOCK_BYTES, HEADER_BYTES, type Id, parseId, TAG_BYTES } from "./protocol.ts";
import { type NetworkOptions, randomOf, SimMemory, SimNetwork, type SimSocket } from "./sim_network.ts";

const PORT = 7000;

/** Which blocks of an object are zero, which absent; the rest have bytes. */
export type Kind = "bytes" | "text" | "zero" | "absent";

export interface ObjectModel {
  readonly id: Id;
  readonly blocks: number;
  kind(index: number): Kind;
}

/** The content of a block: different for each object and index. */
export function content(object: ObjectModel, index: number): Uint8Array {
  const block = new Uint8Array(BLOCK_BYTES);
  const words = new Uint32Array(block.buffer);
  let word = (Number.parseInt(object.id.slice(0, 8), 16) ^ Math.imul(index + 1, 0x9e3779b1)) >>> 0;
  const step = object.kind(index) === "text" ? 64 : 1;
  for (let n = 0; n < words.length; n += step) {
    word = (Math.imul(word, 1664525) + 1013904223) >>> 0;
    words[n] = word;
  }
  words[0] = index + 1;
  return block;
}

export function source(object: ObjectModel): BlockSource {
  return {
    readBlock(index) {
      const kind = object.kind(index);
      return kind === "zero" || kind === "absent" ? kind : content(object, index);
    },
  };
}

/** An id from a number. */
export function idOf(number: number): Id {
  const hex = number.toString(16).padStart(8, "0");
  return parseId(hex + hex + hex + hex);
}

/**
 * Not sealing: a keyed checksum, for simulations in which AES would take the time. It tells damage and another key apart, as the real
 * one does.
 */
export function checksumSealer(key: Uint8Array): Sealer {
  const secret = key.reduce((sum, byte) => (Math.imul(sum, 31) + byte) >>> 0, 7);
  const sum = ({ bytes }: Packet, end: number) => {
    let hash = secret;
    for (let at = 0; at < end; at++) hash = Math.imul(hash ^ (bytes[at] ?? 0), 16777619);
    return hash >>> 0;
  };
  return {
    seal(packet) {
      packet.view.setUint32(packet.length, sum(packet, packet.length));
      packet.length += TAG_BYTES;
    },
    open(packet) {
      const end = packet.length - TAG_BYTES;
      if (end < HEADER_BYTES || packet.view.getUint32(end) !== sum(packet, end)) return false;
      packet.length = end;
      return true;
    },
    [Symbol.dispose]() {},
  };
}

export interface Host {
  readonly distribution: Distribution;
  readonly unicast: SimSocket;
  readonly multicast: SimSocket;
  /** Index to what came, of each object: "bytes" (checked), "zero" or "absent". */
  readonly got: Map<Id, Map<number, "bytes" | "zero" | "absent">>;
  gone: number;
  stalled: number;
}

export class SimCluster implements Disposable {
  readonly network: SimNetwork;
  readonly hosts: Host[];
  readonly #random: () => number;
  readonly #hostOf = new Map<SimSocket, Host>();

  constructor(
    options: {
      readonly seed: number;
      readonly hosts: number;
      readonly network?: Partial<NetworkOptions>;
      readonly sealer?: SealerFactory;
      readonly distribution?: Partial<DistributionOptions>;
    },
  ) {
    this.network = new SimNetwork(options.seed, options.network);
    this.#random = randomOf(options.seed ^ 0x5eed);
    const random = this.#random;
    this.hosts = Array.from({ length: options.hosts }, (_, at) => {
      const unicast = this.network.open({ ip: 0x0a000001 + at, port: PORT });
      const multicast = this.network.open({ ip: 0x0a000001 + at, port: PORT + 1 }, true);
      const host: Host = {
        unicast,
        multicast,
        got: new Map(),
        gone: 0,
        stalled: 0,
        distribution: new Distribution({
          unicast,
          multicast,
          memory: new SimMemory(),
          sealer: options.sealer ?? checksumSealer,
          random48: () => Math.floor(random() * 2 ** 32) * 2 ** 16 + Math.floor(random() * 2 ** 16),
        }, { packets: 32, assemblies: 128, ...options.distribution }),
      };
      this.#hostOf.set(unicast, host).set(multicast, host);
      return host;
    });
  }

  host(at: number): Host {
    const host = this.hosts[at];
    if (host === undefined) throw new RangeError(`No host ${at}`);
    return host;
  }

  /** Makes `object` wanted by `host`, served by host `server`. Throws from within when a block is not what it must be. */
  want(host: Host, family: Id, object: ObjectModel, server: number): void {
    const got = new Map<number, "bytes" | "zero" | "absent">();
    host.got.set(object.id, got);
    host.distribution.addWanted(family, object.id, {
      blocks: object.blocks,
      server: this.host(server).unicast.local,
      sink: {
        onBlock: (index, block) => {
          check(object, index, block);
          if (got.has(index)) throw new Error(`Block ${index} came twice`);
          got.set(index, block === "zero" ? "zero" : "bytes");
        },
        onAbsent: (index) => {
          if (object.kind(index) !== "absent") throw new Error(`Block ${index} came as absent`);
          got.set(index, "absent");
        },
        onGone: () => host.gone++,
        onStalled: () => host.stalled++,
      },
    });
  }

  /** Runs until `done`, or `limitMs` of simulated time; whether it was done. */
  run(done: () => boolean, limitMs: number): boolean {
    const { network } = this;
    while (!done()) {
      let next = network.nextMs ?? Infinity;
      for (const { distribution } of this.hosts) next = Math.min(next, distribution.nextDeadlineMs() ?? Infinity);
      next = Math.max(next, network.nowMs + 0.05);
      if (next > limitMs) return false;
      for (const socket of network.advance(next)) {
        while (socket.readable) this.#hostOf.get(socket)?.distribution.onReadable(socket.fd, network.nowMs);
      }
      for (const { distribution } of this.hosts) {
        if ((distribution.nextDeadlineMs() ?? Infinity) <= network.nowMs) distribution.onTimer(network.nowMs);
      }
    }
    return true;
  }

  [Symbol.dispose](): void {
    for (const { distribution } of this.hosts) distribution[Symbol.dispose]();
  }
}

function check(object: ObjectModel, index: number, block: ReceivedBlock | "zero"): void {
  const kind = object.kind(index);
  if (block === "zero") {
    if (kind !== "zero") throw new Error(`Block ${index} of kind ${kind} came as zero`);
    return;
  }
  const want = new Uint32Array(content(object, index).buffer);
  const got = new Uint32Array(block.bytes.buffer, block.bytes.byteOffset, BLOCK_BYTES / 4);
  const wrong = want.findIndex((word, at) => got[at] !== word);
  if (wrong >= 0 || kind === "absent") {
    throw new Error(`Block ${index} of kind ${kind} has other bytes at ${wrong * 4}`);
  }
}
