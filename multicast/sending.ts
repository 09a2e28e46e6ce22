/** Sends what a family's server machine says, as far as its pace and the socket allow. */
import { writeGone, writeIdle } from "./codec.ts";
import { type Compression, isZero } from "./compression.ts";
import { DataWriter } from "./data_writer.ts";
import type { Family, ServedObject } from "./family.ts";
import type { Outbox } from "./outbox.ts";
import type { Packet } from "./ports.ts";
import { Codec, type Endpoint, type Id, MessageType, MIN_PAYLOAD_BYTES } from "./protocol.ts";
import type { Job } from "./server.ts";
import type { Counters } from "./stats.ts";

/** Payloads tried in turn when a packet was too large for the path: MTU 1500, 1400 (tunnels), 1280 (IPv6's least), and least of all. */
const PAYLOADS = [1372, 1252, MIN_PAYLOAD_BYTES];
/** Buffers a job may need: fragments of a block, and the packet that is open. */
const JOB_ROOM = 9;

export class Sending {
  payloadBytes: number;
  readonly #outbox: Outbox;
  readonly #compression: Compression;
  readonly #counters: Counters;
  readonly #writer: DataWriter;
  readonly #job: Job<ServedObject> = {
    handle: {
      id: "" as Id,
      bytes: new Uint8Array(16),
      words: new Uint32Array(4),
      source: { readBlock: () => "absent" },
      slot: 0,
    },
    slot: 0,
    index: 0,
    mask: 0,
    unicast: undefined,
  };

  constructor(outbox: Outbox, payloadBytes: number, compression: Compression, counters: Counters) {
    this.#outbox = outbox;
    this.payloadBytes = payloadBytes;
    this.#compression = compression;
    this.#counters = counters;
    this.#writer = new DataWriter(outbox);
  }

  pump(family: Family, nowMs: number): void {
    const { server } = family;
    const job = this.#job;
    this.#writer.open(family, server.fanOut(nowMs));
    while (server.queued > 0 && server.pace.ready(nowMs)) {
      if (this.#outbox.room < JOB_ROOM) {
        this.#writer.close();
        if (!this.#outbox.flush()) return;
      }
      if (!server.next(job)) break;
      this.#block(job);
      server.sent(job, nowMs);
    }
    this.#writer.close();
    if (server.idle(nowMs)) this.#idle(family, nowMs);
  }

  /** Tells an asker that the object is not served here. */
  gone(family: Family, object: Uint8Array, to: Endpoint): void {
    const packet = this.#outbox.take();
    if (packet === undefined) return;
    family.begin(packet, MessageType.Gone);
    writeGone(packet, object);
    family.sealer.seal(packet);
    this.#outbox.queue(packet, to.ip, to.port);
  }

  flush(): void {
    this.#outbox.flush();
    if (!this.#outbox.tooLarge) return;
    // The path takes less than was thought. The blocks that were lost by it are asked for again.
    this.#outbox.tooLarge = false;
    this.payloadBytes = PAYLOADS.find((bytes) => bytes < this.payloadBytes) ?? MIN_PAYLOAD_BYTES;
  }

  #idle(family: Family, nowMs: number): void {
    const packet: Packet | undefined = this.#outbox.take();
    if (packet === undefined) return;
    family.begin(packet, MessageType.Idle);
    writeIdle(packet, family.server.sequence);
    family.sealer.seal(packet);
    if (family.mode === "multicast") this.#outbox.queue(packet, family.group.ip, family.group.port);
    for (const { ip, port } of family.server.fanOut(nowMs)) this.#outbox.queue(packet, ip, port);
  }

  #block(job: Job<ServedObject>): void {
    const block = job.handle.source.readBlock(job.index);
    if (block === "later") {
      this.#counters.deferred++;
    } else if (block === "absent") {
      this.#counters.absentSent++;
      this.#writer.run(job, Codec.Absent, this.payloadBytes);
    } else if (block === "zero" || isZero(block)) {
      this.#counters.zeroSent++;
      this.#writer.run(job, Codec.Zero, this.payloadBytes);
    } else {
      this.#counters.blocksSent++;
      this.#writer.block(job, block, this.payloadBytes, this.#compression);
    }
  }
}
