/** Packs blocks into data packets: runs of zero blocks and small compressed blocks share one. */
import {
  appendFragment,
  appendRun,
  beginData,
  DATA_OVERHEAD,
  FRAGMENT_RECORD_BYTES,
  pad,
  RUN_RECORD_BYTES,
} from "./codec.ts";
import { type Compression, encodeBlock } from "./compression.ts";
import type { Family, ServedObject } from "./family.ts";
import type { Outbox } from "./outbox.ts";
import type { Packet } from "./ports.ts";
import { ALL_FRAGMENTS, type Endpoint, fragmentLength, MessageType, TAG_BYTES } from "./protocol.ts";
import type { Job } from "./server.ts";

export class DataWriter {
  readonly #outbox: Outbox;
  #family: Family | undefined;
  #object: ServedObject | undefined;
  #unicast: Endpoint | undefined;
  #packet: Packet | undefined;
  #fanOut: readonly Endpoint[] = [];
  /** Where the open packet's last record is a run: its offset, codec and next block. */
  #runAt = 0;
  #runCodec = 0;
  #runNext = 0;
  /** Length that the open packet is padded to when nothing follows. */
  #padTo = 0;

  constructor(outbox: Outbox) {
    this.#outbox = outbox;
  }

  /** Packets of `payloadBytes`, to the family's stream as it is fanned out now. */
  open(family: Family, fanOut: readonly Endpoint[]): void {
    this.#family = family;
    this.#fanOut = fanOut;
  }

  /** A zero or absent block. */
  run(job: Job<ServedObject>, codec: number, payloadBytes: number): void {
    const packet = this.#room(job, RUN_RECORD_BYTES, payloadBytes);
    if (packet === undefined) return;
    if (this.#runAt > 0 && this.#runCodec === codec && this.#runNext === job.index) {
      const count = packet.view.getUint16(this.#runAt + 5);
      if (count < 0xffff) {
        packet.view.setUint16(this.#runAt + 5, count + 1);
        this.#runNext++;
        return;
      }
    }
    this.#padTo = 0;
    this.#runAt = packet.length;
    this.#runCodec = codec;
    this.#runNext = job.index + 1;
    appendRun(packet, job.index, codec, 1);
  }

  /** The fragments of a block that the job asks for. */
  block(job: Job<ServedObject>, block: Uint8Array, payloadBytes: number, compression: Compression): void {
    const fragmentBytes = payloadBytes - DATA_OVERHEAD - FRAGMENT_RECORD_BYTES - TAG_BYTES;
    const { codec, fragments, bytes } = encodeBlock(block, fragmentBytes, compression);
    // A mask that names no fragment of this encoding is of one that is not made any more.
    const mask = (job.mask & ((1 << fragments) - 1)) || ALL_FRAGMENTS;
    for (let fragment = 0; fragment < fragments; fragment++) {
      if ((mask & (1 << fragment)) === 0) continue;
      const length = FRAGMENT_RECORD_BYTES + fragmentLength(bytes.length, fragments, fragment);
      const packet = this.#room(job, length, payloadBytes);
      // Without a buffer the fragment is lost, as it might be in the network.
      if (packet === undefined) return;
      this.#runAt = 0;
      // The last fragment may be a few bytes shorter than its fellows.
      this.#padTo = packet.length + FRAGMENT_RECORD_BYTES + fragmentLength(bytes.length, fragments, 0);
      appendFragment(packet, job.index, codec, fragment, fragments, bytes);
    }
  }

  /** Seals the open packet and hands it to the outbox. */
  close(): void {
    const packet = this.#packet;
    const family = this.#family;
    if (packet === undefined || family === undefined) return;
    this.#packet = undefined;
    this.#runAt = 0;
    pad(packet, this.#padTo);
    family.sealer.seal(packet);
    let copies = 0;
    if (this.#unicast !== undefined) {
      this.#outbox.queue(packet, this.#unicast.ip, this.#unicast.port);
      copies = 1;
    } else {
      if (family.mode === "multicast") {
        this.#outbox.queue(packet, family.group.ip, family.group.port);
        copies = 1;
      }
      for (const { ip, port } of this.#fanOut) this.#outbox.queue(packet, ip, port);
      copies += this.#fanOut.length;
    }
    family.server.pace.spend(packet.length * copies);
  }

  #room(job: Job<ServedObject>, byteLength: number, payloadBytes: number): Packet | undefined {
    const open = this.#packet;
    if (
      open !== undefined && this.#object === job.handle && this.#unicast === job.unicast &&
      open.length + byteLength + TAG_BYTES <= payloadBytes
    ) return open;
    this.close();
    const family = this.#family;
    const packet = family === undefined ? undefined : this.#outbox.take();
    if (family === undefined || packet === undefined) return undefined;
    this.#packet = packet;
    this.#object = job.handle;
    this.#unicast = job.unicast;
    family.begin(packet, MessageType.Data);
    beginData(packet, job.handle.bytes, job.unicast === undefined ? family.server.nextSequence() : 0);
    return packet;
  }
}
