/**
 * The distribution of blocks on one host: sockets, families and their state machines together. It has no clock and no thread of its
 * own: whoever drives it calls `onReadable` for a descriptor of `fds`, `onTimer` at `nextDeadlineMs`, with the time (any origin, in
 * milliseconds, never backwards).
 */
import type { PinnedMemory } from "../hypercall/ports.ts";
import type { Header } from "./codec.ts";
import type { Compression } from "./compression.ts";
import { Family, type ServedObject, type WantedObject } from "./family.ts";
import { Intake } from "./intake.ts";
import { Outbox } from "./outbox.ts";
import { DEFAULT_PACE, type PaceOptions } from "./pace.ts";
import {
  type BlockSink,
  type BlockSource,
  cutPackets,
  type DatagramSocket,
  type Packet,
  PACKET_CAPACITY,
  type PinnedAllocator,
  type SealerFactory,
} from "./ports.ts";
import {
  BLOCK_BYTES,
  type Endpoint,
  familyGroup,
  type Id,
  idTag,
  MAX_BLOCKS,
  MAX_PAYLOAD_BYTES,
  MessageType,
  MIN_PAYLOAD_BYTES,
} from "./protocol.ts";
import { blockKey, Reassembly } from "./reassembly.ts";
import { DEFAULT_RECEIVER, Receiver, type ReceiverOptions } from "./receiver.ts";
import { Requests } from "./requests.ts";
import { Sending } from "./sending.ts";
import { DEFAULT_SERVER, Server } from "./server.ts";
import { type Counters, newCounters } from "./stats.ts";

export interface DistributionPorts {
  /** Requests and unicast answers; bound to the host's endpoint. All is sent from it. */
  readonly unicast: DatagramSocket;
  /** Bound to the groups' port. Without it this host gets the streams by unicast. */
  readonly multicast?: DatagramSocket;
  readonly memory: PinnedAllocator;
  readonly sealer: SealerFactory;
  /** 48 random bits: a sender id, that no two members (or lives) of a family may share. */
  readonly random48: () => number;
}

export interface DistributionOptions {
  readonly payloadBytes: number;
  readonly compression: Compression;
  readonly pace: PaceOptions;
  readonly receiver: ReceiverOptions;
  /** Packet buffers, in each direction. */
  readonly packets: number;
  /** Blocks assembled at a time, of all families. */
  readonly assemblies: number;
}

export const DEFAULT_OPTIONS: DistributionOptions = {
  payloadBytes: MAX_PAYLOAD_BYTES,
  compression: "none",
  pace: DEFAULT_PACE,
  receiver: DEFAULT_RECEIVER,
  packets: 64,
  assemblies: 1024,
};

export interface FamilyOptions {
  /** 32 bytes, from the authenticated channel; new for each family. */
  readonly key: Uint8Array;
  /** By default one that follows from the id. */
  readonly group?: Endpoint;
  /** `unicast` where the network has no multicast: a copy for each receiver. */
  readonly mode?: "multicast" | "unicast";
}

export interface WantedOptions {
  readonly blocks: number;
  readonly server: Endpoint;
  readonly sink: BlockSink;
  /** Take blocks that siblings asked for. True by default. */
  readonly overhear?: boolean;
}

/** Batches of one socket before others get their turn. */
const MAX_BATCHES = 8;
/** Timers wait so long for sockets to be read. */
const MAX_PUT_OFF_MS = 100;
/** A full socket is tried again after this long. */
const FULL_MS = 1;

export class Distribution implements Disposable {
  readonly fds: readonly number[];
  readonly #ports: DistributionPorts;
  readonly #options: DistributionOptions;
  readonly #memory: PinnedMemory[] = [];
  readonly #received: Packet[];
  readonly #outbox: Outbox;
  readonly #sending: Sending;
  readonly #requests: Requests;
  readonly #reassembly: Reassembly;
  readonly #intake: Intake;
  readonly #families = new Map<number, Family>();
  readonly #served = new Map<Id, { readonly family: Family; readonly object: ServedObject }>();
  readonly #wanted = new Map<Id, WantedObject>();
  readonly #counters: Counters = newCounters();
  #freeSlots: number[] = [];
  /** Sockets that were not read to their end. */
  readonly #backlog = new Set<number>();
  #timersMs = 0;
  #busy = false;
  #nowMs = 0;

  constructor(ports: DistributionPorts, options: Partial<DistributionOptions> = {}) {
    this.#ports = ports;
    this.#options = { ...DEFAULT_OPTIONS, ...options };
    const { payloadBytes } = this.#options;
    if (payloadBytes < MIN_PAYLOAD_BYTES || payloadBytes > PACKET_CAPACITY) {
      throw new RangeError(`A payload of ${payloadBytes} bytes is not in ${MIN_PAYLOAD_BYTES}..${PACKET_CAPACITY}`);
    }
    this.fds = ports.multicast === undefined ? [ports.unicast.fd] : [ports.unicast.fd, ports.multicast.fd];
    const { packets, assemblies } = this.#options;
    this.#received = cutPackets(this.#pin(packets * PACKET_CAPACITY), packets);
    this.#outbox = new Outbox(ports.unicast, cutPackets(this.#pin(packets * PACKET_CAPACITY), packets));
    this.#sending = new Sending(this.#outbox, this.#options.payloadBytes, this.#options.compression, this.#counters);
    this.#requests = new Requests(this.#outbox);
    this.#reassembly = new Reassembly(this.#pin(assemblies * BLOCK_BYTES), assemblies);
    this.#intake = new Intake(this.#reassembly, this.#counters);
    this.#freeSlots = Array.from({ length: 256 }, (_, at) => 255 - at);
  }

  /** Joins a family. Throws when one with the same first 6 bytes of id is open. */
  openFamily(id: Id, options: FamilyOptions): void {
    if (this.#families.has(idTag(id))) {
      throw new RangeError(`Family ${id}, or one whose id begins alike, is open already`);
    }
    const { multicast } = this.#ports;
    const mode = options.mode ?? "multicast";
    const group = options.group ?? familyGroup(id, multicast?.local.port ?? this.#ports.unicast.local.port);
    const family = new Family({
      id,
      group,
      joined: mode === "multicast" && multicast !== undefined && multicast.join(group.ip),
      sender: this.#ports.random48(),
      sealer: this.#ports.sealer(options.key),
      server: new Server<ServedObject>({ ...DEFAULT_SERVER, mode, pace: this.#options.pace }),
      mode,
    });
    this.#families.set(family.tag, family);
  }

  /** Leaves a family and drops its objects. */
  closeFamily(id: Id): void {
    const family = this.#families.get(idTag(id));
    if (family === undefined || family.id !== id) return;
    for (const { id } of [...family.served.values(), ...family.wanted.values()]) this.drop(id);
    if (family.joined) this.#ports.multicast?.leave(family.group.ip);
    this.#families.delete(family.tag);
    family.sealer[Symbol.dispose]();
  }

  /** Serves an object of `blocks` blocks to the family. */
  addServed(familyId: Id, id: Id, blocks: number, source: BlockSource): void {
    checkBlocks(blocks);
    const family = this.#family(familyId);
    this.#served.set(id, { family, object: family.addServed(id, source, blocks) });
  }

  /** Makes an object known, that blocks of it can be requested and overheard. */
  addWanted(familyId: Id, id: Id, options: WantedOptions): void {
    checkBlocks(options.blocks);
    const family = this.#family(familyId);
    const slot = this.#freeSlots.at(-1);
    if (slot === undefined) throw new RangeError("A host wants at most 256 objects at a time");
    const missing = (index: number) => this.#reassembly.missing(blockKey(slot, index));
    const object = this.#requests.wanted(
      family,
      id,
      slot,
      options,
      new Receiver(options.blocks, missing, this.#options.receiver),
    );
    family.addWanted(object);
    this.#freeSlots.pop();
    this.#wanted.set(id, object);
  }

  /** Asks for blocks. A block that came already is fetched anew. `urgent`: a vCPU waits. */
  request(id: Id, indexes: Iterable<number>, options: { readonly urgent: boolean }, nowMs: number): void {
    const wanted = this.#wanted.get(id);
    if (wanted === undefined) throw new RangeError(`Object ${id} is not wanted here`);
    wanted.receiver.request(indexes, options.urgent, nowMs);
    if (!this.#busy) this.#run(nowMs, () => {}, false, wanted.family);
  }

  /** Forgets blocks that were asked for. */
  cancel(id: Id, indexes: Iterable<number>): void {
    this.#wanted.get(id)?.receiver.cancel(indexes);
  }

  /** Blocks that are still to come. */
  left(id: Id): number {
    return this.#wanted.get(id)?.receiver.left ?? 0;
  }

  /** Sends blocks of a served object to the family though nobody asked: a recorded access set, or a block that was `later`. How many were queued. */
  offer(id: Id, indexes: Iterable<number>, nowMs: number): number {
    const served = this.#served.get(id);
    if (served === undefined) return 0;
    const queued = served.family.server.offer(served.object.slot, indexes);
    if (!this.#busy) this.#run(nowMs, () => {}, false, served.family);
    return queued;
  }

  /** Ends serving or wanting an object. */
  drop(id: Id): void {
    const served = this.#served.get(id);
    if (served !== undefined) {
      served.family.server.remove(served.object.slot);
      served.family.served.delete(idTag(id));
      this.#served.delete(id);
    }
    const wanted = this.#wanted.get(id);
    if (wanted === undefined) return;
    wanted.dropped = true;
    wanted.family.wanted.delete(idTag(id));
    this.#wanted.delete(id);
    this.#reassembly.releaseObject(wanted.slot);
    this.#freeSlots.push(wanted.slot);
  }

  /** A descriptor of `fds` is readable. */
  onReadable(fd: number, nowMs: number): void {
    const { unicast, multicast } = this.#ports;
    const group = fd === multicast?.fd;
    const socket = group ? multicast : unicast;
    this.#run(nowMs, () => {
      for (let batch = 0; batch < MAX_BATCHES; batch++) {
        const count = socket.receive(this.#received);
        for (let n = 0; n < count; n++) {
          const packet = this.#received[n];
          if (packet !== undefined) this.#take(packet, group, nowMs);
        }
        if (count < this.#received.length) {
          this.#backlog.delete(fd);
          return;
        }
      }
      this.#backlog.add(fd);
    }, false);
  }

  /** The time that `nextDeadlineMs` named has come. Call it after `onReadable` for what is readable. */
  onTimer(nowMs: number): void {
    // What seems to be lost may wait in a socket that was not read to its end: then timers are put off, though not for ever.
    const timers = this.#backlog.size === 0 || nowMs - this.#timersMs > MAX_PUT_OFF_MS;
    if (timers) this.#timersMs = nowMs;
    this.#run(nowMs, () => {}, timers);
  }

  /** When `onTimer` is due; undefined when nothing is under way. May lie in the past: then it is due now. */
  nextDeadlineMs(): number | undefined {
    let due = this.#outbox.waiting ? this.#nowMs + FULL_MS : Infinity;
    for (const family of this.#families.values()) {
      due = Math.min(due, this.#outbox.waiting ? Infinity : family.server.deadlineMs(this.#nowMs) ?? Infinity);
      for (const wanted of family.wanted.values()) due = Math.min(due, this.#requests.deadlineMs(wanted));
    }
    return due === Infinity ? undefined : due;
  }

  /** What happened so far, and the state of each family. */
  stats() {
    return {
      ...this.#counters,
      sentPackets: this.#outbox.sentPackets,
      sentBytes: this.#outbox.sentBytes,
      sendFailures: this.#outbox.failed,
      payloadBytes: this.#sending.payloadBytes,
      assemblies: this.#reassembly.used,
      assembliesEvicted: this.#reassembly.evicted,
      families: [...this.#families.values()].map((family) => ({
        id: family.id,
        rate: family.server.pace.rate,
        loss: family.server.pace.loss,
        ownLoss: family.server.pace.ownLoss,
        cuts: family.server.pace.cuts,
        queued: family.server.queued,
        receivers: family.server.receivers,
        ...family.server.stats,
        wanted: [...family.wanted.values()].map(({ id, receiver, fanOut }) => ({
          id,
          fanOut,
          left: receiver.left,
          ...receiver.stats,
          urgentTimeouts: receiver.urgentTimeouts,
        })),
      })),
    };
  }

  [Symbol.dispose](): void {
    for (const family of [...this.#families.values()]) this.closeFamily(family.id);
    for (const memory of this.#memory) memory[Symbol.dispose]();
  }

  #pin(byteLength: number): PinnedMemory {
    const memory = this.#ports.memory.allocate(byteLength);
    this.#memory.push(memory);
    return memory;
  }

  #family(id: Id): Family {
    const family = this.#families.get(idTag(id));
    if (family === undefined || family.id !== id) throw new RangeError(`Family ${id} is not open`);
    return family;
  }

  /** Runs `work`, then sends what follows from it. Callbacks may call this object; what they cause is sent here too. */
  #run(nowMs: number, work: () => void, timers: boolean, only?: Family): void {
    this.#nowMs = nowMs;
    this.#busy = true;
    try {
      work();
      for (const family of only === undefined ? this.#families.values() : [only]) {
        for (const wanted of family.wanted.values()) {
          this.#requests.poll(wanted, this.#sending.payloadBytes, nowMs, timers);
        }
        this.#sending.pump(family, nowMs);
      }
      this.#sending.flush();
    } finally {
      this.#busy = false;
    }
  }

  #take(packet: Packet, group: boolean, nowMs: number): void {
    this.#counters.receivedPackets++;
    this.#counters.receivedBytes += packet.length;
    const taken = this.#intake.open(packet, this.#families, nowMs);
    if (taken === undefined) return;
    const { family, peer, header } = taken;
    if (header.type === MessageType.Request) this.#answer(family, packet, header, nowMs);
    else this.#intake.dispatch(family, peer, header.type, packet, group, nowMs);
  }

  #answer(family: Family, packet: Packet, header: Header, nowMs: number): void {
    const asked = this.#intake.request(family, packet);
    if (asked === undefined) return;
    const from = { ip: packet.ip, port: packet.port };
    if (asked.object === undefined) this.#sending.gone(family, asked.id, from);
    else family.server.request(asked.object.slot, asked.request, header.sender, from, nowMs);
  }
}

function checkBlocks(blocks: number): void {
  if (!Number.isInteger(blocks) || blocks < 1 || blocks > MAX_BLOCKS) {
    throw new RangeError(`An object of ${blocks} blocks`);
  }
}
