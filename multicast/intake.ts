/** What arrives: opened, checked, and taken to the state machines. Nothing that a packet says counts before its seal is checked. */
import {
  DataReader,
  type Header,
  namesObject,
  objectId,
  readHeader,
  readIdle,
  readObjectTag,
  readRequest,
  type Request,
} from "./codec.ts";
import { decodeBlock } from "./compression.ts";
import type { Family, Peer, ServedObject, WantedObject } from "./family.ts";
import type { Packet } from "./ports.ts";
import { Codec, MessageType } from "./protocol.ts";
import { blockKey, type Reassembly } from "./reassembly.ts";
import type { Counters } from "./stats.ts";

/** Unicast answers, with no stream for {@link DEAF_MS}, that show that multicast does not come here. */
const DEAF_ANSWERS = 2;
const DEAF_MS = 200;
/** Packets of the stream by multicast that show that it does. */
const HEARING_PACKETS = 8;

export interface Taken {
  family: Family;
  peer: Peer;
  header: Header;
}

export interface Asked {
  request: Request;
  object: ServedObject | undefined;
  id: Uint8Array;
}

export class Intake {
  readonly #reassembly: Reassembly;
  readonly #counters: Counters;
  readonly #header: Header = { type: 0, family: 0, sender: 0, counter: 0 };
  readonly #reader = new DataReader();

  constructor(reassembly: Reassembly, counters: Counters) {
    this.#reassembly = reassembly;
    this.#counters = counters;
  }

  /** Opens a packet of an open family. Everything else is dropped and counted. */
  open(packet: Packet, families: ReadonlyMap<number, Family>, nowMs: number): Taken | undefined {
    const header = this.#header;
    const counters = this.#counters;
    if (!readHeader(packet, header)) return void counters.notOurs++;
    const family = families.get(header.family);
    if (family === undefined) return void counters.unknownFamily++;
    if (header.sender === family.sender) return void counters.own++;
    const known = family.peer(header.sender);
    if (known?.replay.fresh(header.counter) === false) return void counters.replayed++;
    if (!family.sealer.open(packet)) return void counters.forged++;
    const peer = known ?? family.meet(header.sender, nowMs);
    peer.heardMs = nowMs;
    peer.replay.take(header.counter);
    return { family, peer, header };
  }

  /** A request, and the object it is for; undefined when it makes no sense. */
  request(family: Family, packet: Packet): Asked | undefined {
    const request = readRequest(packet);
    const tag = readObjectTag(packet);
    if (request === undefined || tag === undefined) return void this.#counters.malformed++;
    const object = family.served.get(tag);
    if (object !== undefined && namesObject(packet, object.words)) return { request, object, id: object.bytes };
    this.#counters.unknownObject++;
    return { request, object: undefined, id: objectId(packet) };
  }

  /** Anything but a request. `group`: it came by multicast. */
  dispatch(family: Family, peer: Peer, type: number, packet: Packet, group: boolean, nowMs: number): void {
    if (type === MessageType.Idle) return this.#idle(family, peer, packet, nowMs);
    const tag = readObjectTag(packet);
    if (tag === undefined) return void this.#counters.malformed++;
    const wanted = family.wanted.get(tag);
    const known = wanted !== undefined && namesObject(packet, wanted.words) ? wanted : undefined;
    if (type === MessageType.Data) return this.#data(peer, known, packet, group, nowMs);
    if (known === undefined) this.#counters.unknownObject++;
    else if (packet.ip === known.server.ip && packet.port === known.server.port) known.sink.onGone();
  }

  #idle(family: Family, peer: Peer, packet: Packet, nowMs: number): void {
    const sequence = readIdle(packet);
    if (sequence === undefined) return void this.#counters.malformed++;
    // Before the first packet of a stream there is nothing to miss of it.
    if (peer.highest !== 0 && ((sequence - peer.highest) | 0) > 0) peer.highest = sequence;
    for (const wanted of family.wanted.values()) if (wanted.source === peer.sender) wanted.receiver.streamEnded(nowMs);
  }

  #data(peer: Peer, wanted: WantedObject | undefined, packet: Packet, group: boolean, nowMs: number): void {
    const reader = this.#reader;
    if (!reader.open(packet)) return void this.#counters.malformed++;
    const stream = reader.sequence !== 0;
    if (stream) {
      if (peer.highest === 0 || ((reader.sequence - peer.highest) | 0) > 0) peer.highest = reader.sequence;
      peer.received = (peer.received + 1) >>> 0;
    }
    if (wanted === undefined) return void this.#counters.unknownObject++;
    wanted.source = peer.sender;
    this.#listen(wanted, stream, group, nowMs);
    while (!wanted.dropped && reader.next()) this.#record(wanted, peer, packet, stream, nowMs);
  }

  /** Whether multicast reaches this host shows in how answers come. */
  #listen(wanted: WantedObject, stream: boolean, group: boolean, nowMs: number): void {
    if (!stream) {
      if (++wanted.unicastAnswers < DEAF_ANSWERS || nowMs - wanted.streamHeardMs < DEAF_MS) return;
      wanted.fanOut = true;
      wanted.groupPackets = 0;
      return;
    }
    wanted.streamHeardMs = nowMs;
    wanted.unicastAnswers = 0;
    if (group && wanted.fanOut && wanted.family.joined && ++wanted.groupPackets >= HEARING_PACKETS) {
      wanted.fanOut = false;
    }
  }

  #record(wanted: WantedObject, peer: Peer, packet: Packet, stream: boolean, nowMs: number): void {
    const { index, codec, count } = this.#reader;
    const { receiver } = wanted;
    if (codec === Codec.Zero || codec === Codec.Absent) {
      const end = Math.min(index + count, receiver.blocks);
      for (let block = index; block < end && !wanted.dropped; block++) this.#run(wanted, block, codec, stream, nowMs);
      return;
    }
    if (!this.#keeps(wanted, index)) return;
    receiver.fragment(index, stream, nowMs);
    const key = blockKey(wanted.slot, index);
    const slot = this.#reassembly.add(key, peer.sender, this.#reader, packet.bytes);
    if (slot === undefined) return;
    if (codec !== Codec.Raw) {
      const block = decodeBlock(codec, slot.bytes.subarray(0, slot.encodedLength));
      if (block === undefined) {
        this.#counters.undecodable++;
        this.#reassembly.release(key);
        return;
      }
      slot.bytes.set(block);
    }
    this.#counters.blocksReceived++;
    receiver.arrived(index, nowMs);
    try {
      wanted.sink.onBlock(index, slot);
    } finally {
      if (!wanted.dropped) this.#reassembly.release(key);
    }
  }

  #run(wanted: WantedObject, index: number, codec: number, stream: boolean, nowMs: number): void {
    // That a block is absent matters to whoever asked for it only: it may be asked for again later.
    if (!(codec === Codec.Absent ? wanted.receiver.asked(index) : this.#keeps(wanted, index))) return;
    wanted.receiver.fragment(index, stream, nowMs);
    this.#reassembly.release(blockKey(wanted.slot, index));
    wanted.receiver.arrived(index, nowMs);
    if (codec === Codec.Absent) {
      this.#counters.absentReceived++;
      wanted.sink.onAbsent(index);
    } else {
      this.#counters.zeroReceived++;
      wanted.sink.onBlock(index, "zero");
    }
  }

  #keeps(wanted: WantedObject, index: number): boolean {
    if (wanted.receiver.accepts(index) && (wanted.overhear || wanted.receiver.asked(index))) return true;
    this.#counters.duplicates++;
    return false;
  }
}
