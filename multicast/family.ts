/** One family on the wire: its key, its members as far as they were heard, what is served and wanted of it here. */
import { writeHeader } from "./codec.ts";
import type { BlockSink, BlockSource, Packet, Sealer } from "./ports.ts";
import { type Endpoint, type Id, idBytes, idTag, idWords, MAX_COUNTER, MAX_OBJECTS } from "./protocol.ts";
import type { Receiver } from "./receiver.ts";
import { ReplayWindow } from "./replay.ts";
import type { Server } from "./server.ts";

/** Members remembered at a time; the one heard least recently goes. */
const MAX_PEERS = 2048;

export interface ServedObject {
  readonly id: Id;
  readonly bytes: Uint8Array;
  readonly words: Uint32Array;
  readonly source: BlockSource;
  slot: number;
}

export interface WantedObject {
  readonly id: Id;
  readonly bytes: Uint8Array;
  readonly words: Uint32Array;
  /** Names it among the host's wanted objects. */
  readonly slot: number;
  readonly family: Family;
  readonly server: Endpoint;
  readonly receiver: Receiver;
  readonly sink: BlockSink;
  /** Keep what siblings asked for. */
  readonly overhear: boolean;
  /** The sender id of its server; 0 before the first answer. */
  source: number;
  fanOut: boolean;
  /** Unicast answers since the stream was heard last, and stream packets by multicast since the fan-out was asked for. */
  unicastAnswers: number;
  groupPackets: number;
  streamHeardMs: number;
  reportedMs: number;
  reportedReceived: number;
  dropped: boolean;
}

/** Another member, and what came of its stream. */
export interface Peer {
  readonly sender: number;
  readonly replay: ReplayWindow;
  heardMs: number;
  highest: number;
  received: number;
}

export class Family {
  readonly id: Id;
  readonly tag: number;
  readonly group: Endpoint;
  /** The group's packets reach this host: it has joined. */
  readonly joined: boolean;
  readonly sender: number;
  readonly sealer: Sealer;
  readonly server: Server<ServedObject>;
  readonly mode: "multicast" | "unicast";
  readonly served = new Map<number, ServedObject>();
  readonly wanted = new Map<number, WantedObject>();
  readonly #peers = new Map<number, Peer>();
  #last: Peer | undefined;
  readonly #header = { type: 0, family: 0, sender: 0, counter: 0 };

  constructor(
    options: {
      id: Id;
      group: Endpoint;
      joined: boolean;
      sender: number;
      sealer: Sealer;
      server: Server<ServedObject>;
      mode: "multicast" | "unicast";
    },
  ) {
    this.id = options.id;
    this.tag = idTag(options.id);
    this.group = options.group;
    this.joined = options.joined;
    this.sender = options.sender;
    this.sealer = options.sealer;
    this.server = options.server;
    this.mode = options.mode;
    this.#header.family = this.tag;
    this.#header.sender = options.sender;
  }

  /** Begins a packet. The counter makes its nonce: it is taken once. */
  begin(packet: Packet, type: number): void {
    this.#header.type = type;
    this.#header.counter++;
    if (this.#header.counter > MAX_COUNTER) throw new RangeError(`Family ${this.id} has used up its packet counter`);
    writeHeader(packet, this.#header);
  }

  addServed(id: Id, source: BlockSource, blocks: number): ServedObject {
    claim(this.served, id);
    const object: ServedObject = { id, bytes: idBytes(id), words: idWords(id), source, slot: 0 };
    object.slot = this.server.add(object, blocks);
    this.served.set(idTag(id), object);
    return object;
  }

  addWanted(object: WantedObject): void {
    claim(this.wanted, object.id);
    this.wanted.set(idTag(object.id), object);
  }

  /** A member that was heard before. */
  peer(sender: number): Peer | undefined {
    if (this.#last?.sender === sender) return this.#last;
    const peer = this.#peers.get(sender);
    if (peer !== undefined) this.#last = peer;
    return peer;
  }

  /** A member that is heard for the first time. */
  meet(sender: number, nowMs: number): Peer {
    if (this.#peers.size >= MAX_PEERS) this.#forgetOldest();
    const peer = { sender, replay: new ReplayWindow(), heardMs: nowMs, highest: 0, received: 0 };
    this.#peers.set(sender, peer);
    return peer;
  }

  #forgetOldest(): void {
    let oldest: Peer | undefined;
    for (const peer of this.#peers.values()) if (oldest === undefined || peer.heardMs < oldest.heardMs) oldest = peer;
    if (oldest !== undefined) this.#peers.delete(oldest.sender);
    this.#last = undefined;
  }
}

function claim(objects: ReadonlyMap<number, unknown>, id: Id): void {
  if (objects.has(idTag(id))) throw new RangeError(`Object ${id}, or one whose id begins alike, is here already`);
  if (objects.size >= MAX_OBJECTS) throw new RangeError(`A family has at most ${MAX_OBJECTS} objects`);
}
