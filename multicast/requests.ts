/** Sends a receiver's requests and reports. */
import { rangesPerPacket, writeRequest } from "./codec.ts";
import type { Family, WantedObject } from "./family.ts";
import type { Outbox } from "./outbox.ts";
import type { BlockSink } from "./ports.ts";
import { type Endpoint, type Id, idBytes, idWords, MessageType, RequestFlag } from "./protocol.ts";
import type { Ask, Receiver } from "./receiver.ts";

/** While the stream runs, its server hears of it so often. */
const REPORT_MS = 10;
/** And while it does not: the server forgets a receiver that is silent for 10 s. */
const ALIVE_MS = 2000;
/** Requests in one turn; the rest of a larger asking waits for the next retry. */
const MAX_PACKETS = 32;

export class Requests {
  readonly #outbox: Outbox;

  constructor(outbox: Outbox) {
    this.#outbox = outbox;
  }

  wanted(
    family: Family,
    id: Id,
    slot: number,
    options: { readonly server: Endpoint; readonly sink: BlockSink; readonly overhear?: boolean },
    receiver: Receiver,
  ): WantedObject {
    return {
      id,
      bytes: idBytes(id),
      words: idWords(id),
      slot,
      family,
      server: options.server,
      receiver,
      sink: options.sink,
      overhear: options.overhear ?? true,
      source: 0,
      fanOut: !family.joined,
      unicastAnswers: 0,
      groupPackets: 0,
      streamHeardMs: -Infinity,
      reportedMs: -Infinity,
      reportedReceived: 0,
      dropped: false,
    };
  }

  /** Sends what is due: requests, a report, and the news that the server is silent. */
  poll(wanted: WantedObject, payloadBytes: number, nowMs: number, timers: boolean): void {
    const { receiver } = wanted;
    let packets = 0;
    for (const ask of receiver.poll(nowMs, timers)) packets = this.#send(wanted, ask, payloadBytes, packets, nowMs);
    if (nowMs >= this.#reportDueMs(wanted)) {
      this.#send(wanted, { urgent: false, unicast: false, ranges: [] }, payloadBytes, 0, nowMs);
    }
    const silentMs = timers ? receiver.silence(nowMs) : undefined;
    if (silentMs !== undefined) wanted.sink.onStalled(silentMs);
  }

  deadlineMs(wanted: WantedObject): number {
    return Math.min(wanted.receiver.deadlineMs() ?? Infinity, this.#reportDueMs(wanted));
  }

  #reportDueMs(wanted: WantedObject): number {
    const received = wanted.family.peer(wanted.source)?.received ?? 0;
    return wanted.reportedMs + (received !== wanted.reportedReceived ? REPORT_MS : ALIVE_MS);
  }

  #send(wanted: WantedObject, ask: Ask, payloadBytes: number, packets: number, nowMs: number): number {
    const { family, server } = wanted;
    const peer = family.peer(wanted.source);
    const request = {
      flags: (ask.urgent ? RequestFlag.Urgent : 0) | (ask.unicast ? RequestFlag.Unicast : 0) |
        (wanted.fanOut ? RequestFlag.FanOut : 0),
      highest: peer?.highest ?? 0,
      received: peer?.received ?? 0,
      ranges: ask.ranges,
    };
    const each = rangesPerPacket(payloadBytes);
    wanted.reportedMs = nowMs;
    wanted.reportedReceived = request.received;
    let from = 0;
    do {
      const packet = packets++ < MAX_PACKETS ? this.#outbox.take() : undefined;
      if (packet === undefined) return packets;
      family.begin(packet, MessageType.Request);
      writeRequest(packet, wanted.bytes, request, from, from + each);
      family.sealer.seal(packet);
      this.#outbox.queue(packet, server.ip, server.port);
      from += each;
    } while (from < ask.ranges.length);
    return packets;
  }
}
