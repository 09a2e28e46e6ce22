/** What the distribution needs from below: datagrams, sealing, pinned memory. `native_*.ts` and the simulator implement it. */
import type { Address, PinnedMemory } from "../hypercall/ports.ts";
import type { Endpoint } from "./protocol.ts";

/** Bytes of a packet's buffer. */
export const PACKET_CAPACITY = 2048;

/** A buffer for one datagram, in pinned memory. */
export interface Packet {
  readonly address: Address;
  readonly bytes: Uint8Array<ArrayBuffer>;
  readonly view: DataView<ArrayBuffer>;
  /** Bytes of the datagram. */
  length: number;
  /** Where a received datagram came from. */
  ip: number;
  port: number;
}

/** Cuts pinned memory into packets. */
export function cutPackets(memory: PinnedMemory, count: number): Packet[] {
  return Array.from({ length: count }, (_, at) => {
    const bytes = memory.bytes.subarray(at * PACKET_CAPACITY, (at + 1) * PACKET_CAPACITY);
    return {
      address: memory.address + BigInt(at * PACKET_CAPACITY) as Address,
      bytes,
      view: new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength),
      length: 0,
      ip: 0,
      port: 0,
    };
  });
}

/** A packet on its way to one endpoint. Several may share a packet. */
export interface Outgoing {
  packet: Packet;
  ip: number;
  port: number;
}

/** What became of a batch. */
export interface SendResult {
  /** Messages that are done with: sent or failed. The others found the socket full. */
  readonly done: number;
  /** Of these, failed. */
  readonly failed: number;
  /** One failed for being larger than the path takes (EMSGSIZE). */
  readonly tooLarge: boolean;
}

/** A non-blocking UDP socket. */
export interface DatagramSocket extends Disposable {
  readonly fd: number;
  readonly local: Endpoint;
  /** Fills `packets` from the first on. How many were filled; 0 when nothing is there. A longer datagram is cut to the capacity. */
  receive(packets: readonly Packet[]): number;
  /** Sends the first `count` messages. */
  send(messages: readonly Outgoing[], count: number): SendResult;
  /** Joins a group. False when the system has no more room for groups, or no multicast. */
  join(group: number): boolean;
  leave(group: number): void;
}

/** AES-256-GCM with one key. The header (its nonce, too) is authenticated, the rest is encrypted in place. */
export interface Sealer extends Disposable {
  /** Encrypts, appends the tag and adds its 16 bytes to `length`. */
  seal(packet: Packet): void;
  /** Decrypts and takes the tag off `length`. False for a forgery; the packet's content is then undefined. */
  open(packet: Packet): boolean;
}

/** Builds a sealer for a 32-byte key. */
export type SealerFactory = (key: Uint8Array) => Sealer;

export interface PinnedAllocator {
  allocate(byteLength: number): PinnedMemory;
}

/** Where a served object's blocks come from. */
export interface BlockSource {
  /**
   * The block's 4096 bytes, valid until the next call; or why there are none: `zero`, all bytes are; `absent`, there is no such
   * block; `later`, whoever owns the source calls `offer` when it has it.
   */
  readBlock(index: number): Uint8Array | "zero" | "absent" | "later";
}

/** A received block: pinned memory, valid until the callback returns. */
export interface ReceivedBlock {
  readonly address: Address;
  readonly bytes: Uint8Array<ArrayBuffer>;
}

/** Where a wanted object's blocks go. */
export interface BlockSink {
  /** A block that was asked for, or that a sibling asked for. Never twice unless it is requested again. */
  onBlock(index: number, block: ReceivedBlock | "zero"): void;
  /** A requested block does not exist at the server. */
  onAbsent(index: number): void;
  /** The server does not serve the object (any more). Requests are kept; drop the object or find another server. */
  onGone(): void;
  /** The server has not answered for `silentMs` though blocks are requested. Told again whenever the silence has doubled; retries go on. */
  onStalled(silentMs: number): void;
}
