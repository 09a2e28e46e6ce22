/**
 * The serving side of one family: which blocks go out next, to whom. A state machine that changes in place and is deterministic:
 * events come in by methods, with the time as an argument; `next` gives the effects, one block at a time.
 *
 * Lockstep: receivers that run in step ask for the same blocks. A block that waits to be sent is not queued twice. One that was sent
 * is sent again only to a receiver that has seen the stream beyond it (it did lose it), or after a while.
 */
import { BlockRing } from "./block_ring.ts";
import { AT } from "./block_states.ts";
import type { Request } from "./codec.ts";
import { Pace, type PaceOptions } from "./pace.ts";
import { ALL_FRAGMENTS, type Endpoint, MAX_RANGE_BLOCKS, RequestFlag } from "./protocol.ts";

export interface ServerOptions {
  readonly pace: PaceOptions;
  /** Send to the group, or to every known receiver by unicast. */
  readonly mode: "multicast" | "unicast";
  /** Blocks that wait to be sent. */
  readonly maxQueued: number;
  /** Unicast answers that wait to be sent. */
  readonly maxUnicast: number;
  readonly maxReceivers: number;
}

export const DEFAULT_SERVER: Omit<ServerOptions, "pace"> = {
  mode: "multicast",
  maxQueued: 65536,
  maxUnicast: 2048,
  maxReceivers: 2048,
};

/**
 * A repeated request without proof of loss is answered again after this long: by a receiver that hears the stream, which will see for
 * itself what it lost; and by one that has heard nothing of it yet.
 */
const LOCKSTEP_MS = 1000;
const LOCKSTEP_UNHEARD_MS = 150;
/** A receiver that is silent for so long gets no more unicast copies. */
const RECEIVER_LAPSE_MS = 10_000;
/** When to tell, after the last block, that the stream has ended: the tail's losses show by it. */
const IDLE_AFTER_MS = [1, 8, 60];

/** What is known of the blocks `chunk * 4096` and on. */
class Chunk {
  readonly pending = new Uint8Array(MAX_RANGE_BLOCKS);
  readonly sentMask = new Uint8Array(MAX_RANGE_BLOCKS);
  readonly sentSequence = new Uint32Array(MAX_RANGE_BLOCKS);
  readonly sentMs = new Float64Array(MAX_RANGE_BLOCKS);
}

interface Served<T> {
  readonly handle: T;
  readonly blocks: number;
  readonly chunks: Map<number, Chunk>;
}

interface Receiver {
  readonly sender: number;
  endpoint: Endpoint;
  heardMs: number;
  fanOut: boolean;
  highest: number;
  received: number;
  reported: boolean;
}

/** One block to send: the fragments in `mask`, to the stream or (`unicast`) to one endpoint. */
export interface Job<T> {
  handle: T;
  slot: number;
  index: number;
  mask: number;
  unicast: Endpoint | undefined;
}

interface UnicastJob {
  readonly slot: number;
  readonly index: number;
  readonly mask: number;
  readonly endpoint: Endpoint;
}

export interface ServerStats {
  requests: number;
  /** Blocks asked for. */
  asked: number;
  /** Of these: were queued already, had just been sent, were refused at a bound, lay outside the object. */
  merged: number;
  suppressed: number;
  refused: number;
  outside: number;
  unicastAnswers: number;
}

export class Server<T> {
  readonly pace: Pace;
  readonly stats: ServerStats = {
    requests: 0,
    asked: 0,
    merged: 0,
    suppressed: 0,
    refused: 0,
    outside: 0,
    unicastAnswers: 0,
  };
  /** Sequence of the last packet of the stream; never 0 once one was sent. */
  sequence = 0;
  readonly #options: ServerOptions;
  readonly #served: (Served<T> | undefined)[] = [];
  readonly #receivers = new Map<number, Receiver>();
  readonly #urgent: BlockRing;
  readonly #background: BlockRing;
  readonly #unicast: UnicastJob[] = [];
  #fanOut: Endpoint[] = [];
  #fanOutStale = true;
  #lapsesMs = Infinity;
  #idleStep = IDLE_AFTER_MS.length;
  #idleSinceMs = 0;

  constructor(options: ServerOptions) {
    this.#options = options;
    this.pace = new Pace(options.pace);
    this.#urgent = new BlockRing(options.maxQueued);
    this.#background = new BlockRing(options.maxQueued);
  }

  /** Slot of the object, for `request` and `offer`. */
  add(handle: T, blocks: number): number {
    const free = this.#served.indexOf(undefined);
    const slot = free < 0 ? this.#served.length : free;
    this.#served[slot] = { handle, blocks, chunks: new Map() };
    return slot;
  }

  remove(slot: number): void {
    // Entries in the rings that name the slot find no pending mask there any more.
    this.#served[slot] = undefined;
    for (let at = this.#unicast.length - 1; at >= 0; at--) {
      if (this.#unicast[at]?.slot === slot) this.#unicast.splice(at, 1);
    }
  }

  get queued(): number {
    return this.#urgent.size + this.#background.size + this.#unicast.length;
  }

  get receivers(): number {
    return this.#receivers.size;
  }

  /** An authenticated request for the object in `slot`. */
  request(slot: number, request: Request, sender: number, from: Endpoint, nowMs: number): void {
    const served = this.#served[slot];
    if (served === undefined) return;
    this.stats.requests++;
    this.#hear(request, sender, from, nowMs);
    for (const { index, count, mask } of request.ranges) {
      const end = Math.min(index + count, served.blocks);
      this.stats.outside += index + count - Math.max(index, end);
      for (let block = index; block < end; block++) {
        this.stats.asked++;
        if (request.flags & RequestFlag.Unicast) this.#askUnicast(slot, block, mask, from);
        else this.#ask(slot, served, block, mask, request, nowMs);
      }
    }
  }

  /** Queues blocks nobody asked for. How many found room. */
  offer(slot: number, indexes: Iterable<number>): number {
    const served = this.#served[slot];
    if (served === undefined) return 0;
    let queued = 0;
    for (const index of indexes) {
      if (index >= served.blocks) continue;
      const chunk = chunkOf(served, index);
      if (chunk.pending[index & AT] !== 0) continue;
      if (!this.#background.push(slot, index)) break;
      chunk.pending[index & AT] = ALL_FRAGMENTS;
      queued++;
    }
    return queued;
  }

  /** Takes the next block to send into `job`; false when there is none. Ask `pace.ready` first. */
  next(job: Job<T>): boolean {
    while (this.#take(this.#urgent, job)) if (job.mask !== 0) return true;
    const unicast = this.#unicast.shift();
    if (unicast !== undefined) {
      const served = this.#served[unicast.slot];
      if (served !== undefined) {
        this.stats.unicastAnswers++;
        job.handle = served.handle;
        job.slot = unicast.slot;
        job.index = unicast.index;
        job.mask = unicast.mask;
        job.unicast = unicast.endpoint;
        return true;
      }
    }
    while (this.#take(this.#background, job)) if (job.mask !== 0) return true;
    return false;
  }

  /** The last packet of a stream job went out with the current `sequence`. */
  sent(job: Job<T>, nowMs: number): void {
    this.#idleStep = 0;
    this.#idleSinceMs = nowMs;
    const served = this.#served[job.slot];
    if (served === undefined || job.unicast !== undefined) return;
    const chunk = chunkOf(served, job.index);
    const at = job.index & AT;
    chunk.sentMask[at] = job.mask;
    chunk.sentSequence[at] = this.sequence;
    chunk.sentMs[at] = nowMs;
  }

  nextSequence(): number {
    this.sequence = this.sequence === 0xffffffff ? 1 : this.sequence + 1;
    return this.sequence;
  }

  /** Who gets the stream by unicast. */
  fanOut(nowMs: number): readonly Endpoint[] {
    if (nowMs > this.#lapsesMs) this.#lapse(nowMs);
    if (this.#fanOutStale) {
      this.#fanOutStale = false;
      this.#fanOut = [];
      for (const receiver of this.#receivers.values()) {
        if (receiver.fanOut || this.#options.mode === "unicast") this.#fanOut.push(receiver.endpoint);
      }
    }
    return this.#fanOut;
  }

  /** Whether to tell the family now that the stream has ended. */
  idle(nowMs: number): boolean {
    const after = IDLE_AFTER_MS[this.#idleStep];
    if (after === undefined || this.sequence === 0 || this.queued > 0 || nowMs < this.#idleSinceMs + after) {
      return false;
    }
    this.#idleStep++;
    return true;
  }

  /** When `next` or `idle` may have something, without another event. */
  deadlineMs(nowMs: number): number | undefined {
    if (this.queued > 0) return nowMs + this.pace.waitMs();
    const after = IDLE_AFTER_MS[this.#idleStep];
    return after === undefined || this.sequence === 0 ? undefined : this.#idleSinceMs + after;
  }

  #take(ring: BlockRing, job: Job<T>): boolean {
    if (!ring.shift()) return false;
    job.mask = 0;
    const served = this.#served[ring.slot];
    if (served === undefined) return true;
    const chunk = chunkOf(served, ring.index);
    const at = ring.index & AT;
    job.handle = served.handle;
    job.slot = ring.slot;
    job.index = ring.index;
    job.mask = (chunk.pending[at] ?? 0) & ALL_FRAGMENTS;
    job.unicast = undefined;
    chunk.pending[at] = 0;
    return true;
  }

  #ask(slot: number, served: Served<T>, index: number, mask: number, request: Request, nowMs: number): void {
    const chunk = chunkOf(served, index);
    const at = index & AT;
    const pending = chunk.pending[at] ?? 0;
    const urgent = (request.flags & RequestFlag.Urgent) !== 0;
    let wanted = mask;
    if (pending === 0) {
      const sequence = chunk.sentSequence[at] ?? 0;
      // Distance modulo 2^32: positive when the receiver has not come so far yet.
      const ahead = request.highest === 0 ? 1 : (sequence - request.highest) | 0;
      const windowMs = request.highest === 0 ? LOCKSTEP_UNHEARD_MS : LOCKSTEP_MS;
      if (sequence !== 0 && ahead > 0 && nowMs - (chunk.sentMs[at] ?? 0) < windowMs) {
        wanted &= ~(chunk.sentMask[at] ?? 0);
        if (wanted === 0) {
          this.stats.suppressed++;
          return;
        }
      }
    } else {
      this.stats.merged++;
    }
    // Bit 7: it is in the urgent ring. A block asked for urgently after it was queued is in both; the later finds no mask.
    const queuedHere = urgent ? pending & 0x80 : pending;
    if (queuedHere === 0 && !(urgent ? this.#urgent : this.#background).push(slot, index)) {
      this.stats.refused++;
      return;
    }
    chunk.pending[at] = pending | wanted | (urgent ? 0x80 : 0);
  }

  #askUnicast(slot: number, index: number, mask: number, endpoint: Endpoint): void {
    if (this.#unicast.length >= this.#options.maxUnicast) this.stats.refused++;
    else this.#unicast.push({ slot, index, mask, endpoint });
  }

  #hear(request: Request, sender: number, endpoint: Endpoint, nowMs: number): void {
    let receiver = this.#receivers.get(sender);
    if (receiver === undefined) {
      if (this.#receivers.size >= this.#options.maxReceivers) this.#lapse(nowMs);
      // At the bound it is answered, but neither paced by nor fanned out to.
      if (this.#receivers.size >= this.#options.maxReceivers) return;
      receiver = { sender, endpoint, heardMs: nowMs, fanOut: false, highest: 0, received: 0, reported: false };
      this.#receivers.set(sender, receiver);
      this.#fanOutStale = true;
      this.#lapsesMs = Math.min(this.#lapsesMs, nowMs + RECEIVER_LAPSE_MS);
    }
    receiver.heardMs = nowMs;
    const fanOut = (request.flags & RequestFlag.FanOut) !== 0;
    if (
      fanOut !== receiver.fanOut || endpoint.ip !== receiver.endpoint.ip || endpoint.port !== receiver.endpoint.port
    ) {
      receiver.fanOut = fanOut;
      receiver.endpoint = endpoint;
      this.#fanOutStale = true;
    }
    if (request.highest === 0) return;
    const ahead = (request.highest - receiver.highest) | 0;
    if (receiver.reported && ahead <= 0) return;
    // A sequence of the future is not ours: it speaks of a server that was before.
    if (((this.sequence - request.highest) | 0) < 0) return;
    if (receiver.reported) {
      const heard = (request.received - receiver.received) | 0;
      if (heard >= 0) this.pace.report(Math.min(heard, ahead), Math.max(0, ahead - heard), nowMs);
    }
    receiver.reported = true;
    receiver.highest = request.highest;
    receiver.received = request.received;
  }

  #lapse(nowMs: number): void {
    this.#lapsesMs = Infinity;
    for (const [sender, receiver] of this.#receivers) {
      const lapsesMs = receiver.heardMs + RECEIVER_LAPSE_MS;
      if (lapsesMs < nowMs) {
        this.#receivers.delete(sender);
        this.#fanOutStale = true;
      } else this.#lapsesMs = Math.min(this.#lapsesMs, lapsesMs);
    }
  }
}

function chunkOf<T>(served: Served<T>, index: number): Chunk {
  const number = index >>> 12;
  let chunk = served.chunks.get(number);
  if (chunk === undefined) {
    chunk = new Chunk();
    served.chunks.set(number, chunk);
  }
  return chunk;
}
