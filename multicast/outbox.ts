/** Sealed packets on their way out, in a bounded number of buffers, sent in batches. */
import type { DatagramSocket, Outgoing, Packet } from "./ports.ts";

/** Messages that make a batch. */
const BATCH = 128;

export class Outbox {
  sentPackets = 0;
  sentBytes = 0;
  failed = 0;
  /** A packet was larger than the path takes. */
  tooLarge = false;
  readonly #socket: DatagramSocket;
  readonly #packets: readonly Packet[];
  #taken = 0;
  #messages: Outgoing[] = [];
  #count = 0;

  constructor(socket: DatagramSocket, packets: readonly Packet[]) {
    this.#socket = socket;
    this.#packets = packets;
  }

  /** Packets that can be taken before a flush. */
  get room(): number {
    return this.#packets.length - this.#taken;
  }

  get waiting(): boolean {
    return this.#count > 0;
  }

  /** A free buffer; undefined when all are on their way and the socket is full. */
  take(): Packet | undefined {
    if (this.room === 0) this.flush();
    return this.room === 0 ? undefined : this.#packets[this.#taken++];
  }

  /** Queues a sealed packet. It may be queued for several endpoints. */
  queue(packet: Packet, ip: number, port: number): void {
    const message = this.#messages[this.#count];
    if (message === undefined) this.#messages.push({ packet, ip, port });
    else {
      message.packet = packet;
      message.ip = ip;
      message.port = port;
    }
    this.#count++;
    if (this.#count >= BATCH) this.#send();
  }

  /** Sends what waits. True when nothing waits any more. Every packet that was taken must be queued by now. */
  flush(): boolean {
    this.#send();
    if (this.#count === 0) this.#taken = 0;
    return this.#count === 0;
  }

  #send(): void {
    if (this.#count === 0) return;
    const { done, failed, tooLarge } = this.#socket.send(this.#messages, this.#count);
    for (let n = 0; n < done; n++) this.sentBytes += this.#messages[n]?.packet.length ?? 0;
    this.sentPackets += done - failed;
    this.failed += failed;
    if (tooLarge) this.tooLarge = true;
    if (done === 0) return;
    const left = this.#messages.slice(done, this.#count);
    if (left.length > 0) this.#messages = left;
    this.#count = left.length;
  }
}
