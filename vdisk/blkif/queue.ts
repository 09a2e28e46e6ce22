/**
 * One ring's requests, from the guest's page to the disk and back. They are taken in batches; a batch costs one grant copy for
 * the indirect pages, one for the data to write and one for the data read, whatever its size. A request that needs blocks of
 * another host is set aside and done again when they are here; the others go on.
 */
import type { Domid } from "../../hypercall/ports.ts";
import { DiskError } from "../errors.ts";
import type { Chain } from "../chain.ts";
import { SECTOR_BYTES } from "../ports.ts";
import type { RemoteLayer } from "../remote_layer.ts";
import { RSP_ERROR, RSP_OKAY, Segment, SLOT_BYTES, SLOTS } from "./abi.ts";
import { type CopyDevices, GuestCopier } from "./grant_copy.ts";
import { type DiskLimits, DiskRequest } from "./request.ts";
import type { BackRing } from "./ring.ts";

export interface QueueCounts {
  reads: number;
  writes: number;
  flushes: number;
  discards: number;
  readBytes: number;
  writtenBytes: number;
  /** Answered with an error, for whatever reason. */
  refused: number;
  /** Set aside for blocks of another host. */
  waited: number;
}

export interface QueueOptions {
  readonly ring: BackRing;
  readonly domid: Domid;
  readonly chain: Chain;
  readonly remote: RemoteLayer | undefined;
  readonly devices: CopyDevices;
  readonly notify: () => void;
  /** There is something to `process` though no event came. */
  readonly onReady: () => void;
  /** Each refused request's reason: at most `SLOTS` a batch. `cause` where the disk, not the guest, is at fault. */
  readonly onRefused?: (reason: string, cause?: unknown) => void;
}

export class DiskQueue {
  readonly #ring: BackRing;
  readonly #chain: Chain;
  readonly #remote: RemoteLayer | undefined;
  readonly #options: QueueOptions;
  readonly #copier: GuestCopier;
  readonly #limits: DiskLimits;
  readonly #slot = new Uint8Array(SLOT_BYTES);
  /** Taken and not answered, in the ring's order. At most `SLOTS`: the ring refuses more. */
  readonly #inflight: DiskRequest[] = [];
  /** Those of them whose blocks have arrived. */
  #arrived: DiskRequest[] = [];
  #paused = false;
  #broken: string | undefined;
  readonly counts: QueueCounts = {
    reads: 0,
    writes: 0,
    flushes: 0,
    discards: 0,
    readBytes: 0,
    writtenBytes: 0,
    refused: 0,
    waited: 0,
  };

  constructor(options: QueueOptions) {
    this.#options = options;
    this.#ring = options.ring;
    this.#chain = options.chain;
    this.#remote = options.remote;
    this.#copier = new GuestCopier(options.devices, options.domid);
    this.#limits = { sectors: options.chain.byteLength / SECTOR_BYTES, writable: options.chain.writable };
  }

  get copyCounts() {
    return this.#copier.counts;
  }
  /** Nothing is taken and unanswered. */
  get idle(): boolean {
    return this.#inflight.length === 0;
  }
  /** Why the ring is of no use any more. */
  get broken(): string | undefined {
    return this.#broken;
  }

  /** Takes no request any more, for good. */
  giveUp(error: unknown): void {
    this.#broken ??= error instanceof Error ? error.message : String(error);
  }

  /** No request is taken from now on; those in flight are still done. */
  pause(): void {
    this.#paused = true;
  }

  resume(): void {
    this.#paused = false;
    this.#options.onReady();
  }

  /** Does one batch. Whether there is more to do at once. */
  process(): boolean {
    const batch: DiskRequest[] = [];
    let staged = this.#takeArrived(batch);
    let more = this.#arrived.length > 0;
    try {
      if (!more && !this.#paused && this.#broken === undefined) {
        staged = this.#takeNew(batch, staged);
        more = this.#ring.available() > 0 || this.#ring.rearm();
      }
    } catch (error) {
      if (!(error instanceof DiskError)) throw error;
      this.giveUp(error);
      this.#options.onRefused?.(error.message);
      more = false;
    }
    if (batch.length > 0) this.#execute(batch);
    return more;
  }

  #takeArrived(batch: DiskRequest[]): number {
    let staged = 0;
    let count = 0;
    for (const request of this.#arrived) {
      if (batch.length > 0 && staged + request.maxBytes > this.#copier.stagingBytes) break;
      request.stagingOffset = staged;
      staged += request.maxBytes;
      batch.push(request);
      count++;
    }
    this.#arrived = this.#arrived.slice(count);
    return staged;
  }

  #takeNew(batch: DiskRequest[], alreadyStaged: number): number {
    let staged = alreadyStaged;
    for (let left = this.#ring.available(); left > 0 && batch.length < SLOTS; left--) {
      this.#ring.copyRequest(this.#slot);
      const request = new DiskRequest(this.#slot);
      // Its list of segments passes through the same place before its data does.
      const bytes = Math.max(request.maxBytes, request.segments * Segment.size);
      if (batch.length > 0 && staged + bytes > this.#copier.stagingBytes) break;
      request.stagingOffset = staged;
      staged += bytes;
      this.#ring.take();
      this.#inflight.push(request);
      batch.push(request);
    }
    return staged;
  }

  #execute(batch: DiskRequest[]): void {
    const indirect = batch.filter((request) => request.indirectRef !== undefined && request.refs.length === 0);
    this.#attempt(indirect, () => this.#copier.fetchSegments(indirect.filter((request) => request.kind !== "refused")));
    for (const request of batch) request.check(this.#limits);
    const writes = batch.filter((request) =>
      request.kind === "write" || (request.kind === "flush" && request.segments > 0)
    );
    this.#attempt(writes, () => this.#copier.fetchData(writes));
    const reads: DiskRequest[] = [];
    for (const request of batch) {
      if (request.kind === "refused" || this.#setAside(request)) continue;
      this.#attempt([request], () => this.#perform(request));
      if (request.kind === "read") reads.push(request);
      else if (request.status === undefined) request.status = RSP_OKAY;
    }
    this.#attempt(reads, () => this.#copier.deliverData(reads));
    for (const request of reads) request.status ??= RSP_OKAY;
    for (const request of batch) {
      if (request.kind === "refused") {
        this.counts.refused++;
        this.#options.onRefused?.(request.reason ?? "refused");
      }
    }
    this.#answer();
  }

  #perform(request: DiskRequest): void {
    switch (request.kind) {
      case "read":
        this.#chain.read(this.#copier.staged(request), request.byteOffset);
        this.counts.reads++;
        this.counts.readBytes += request.byteLength;
        break;
      case "write":
        this.#write(request);
        break;
      case "flush":
        this.#chain.flush();
        this.counts.flushes++;
        if (request.segments > 0) this.#write(request);
        break;
      case "discard":
        this.#chain.discard(request.byteOffset, request.byteLength);
        this.counts.discards++;
        break;
      case "refused":
        break;
    }
  }

  #write(request: DiskRequest): void {
    this.#chain.write(this.#copier.staged(request), request.byteOffset);
    this.counts.writes++;
    this.counts.writtenBytes += request.byteLength;
  }

  /** Whether the request waits for blocks from now on. */
  #setAside(request: DiskRequest): boolean {
    const remote = this.#remote;
    if (remote === undefined || request.kind === "discard" || request.segments === 0) return false;
    const operation = request.kind === "read" ? "read" : "write";
    const blocks = this.#chain.missing(request.byteOffset, request.byteLength, operation);
    if (blocks.length === 0) return false;
    this.counts.waited++;
    remote.fetch(blocks, (failure) => {
      if (failure !== undefined) request.refuse(RSP_ERROR, failure);
      this.#arrived.push(request);
      this.#options.onReady();
    });
    return true;
  }

  /** Whatever goes wrong in `step` is the requests' failure: one disk's, never the process'. */
  #attempt(requests: readonly DiskRequest[], step: () => void): void {
    if (requests.length === 0) return;
    try {
      step();
    } catch (error) {
      for (const request of requests) {
        if (request.status === undefined) {
          request.refuse(RSP_ERROR, error instanceof Error ? error.message : String(error));
        }
      }
      this.#options.onRefused?.(`${requests.length} requests failed`, error);
    }
  }

  /** Responses in the ring's order, up to the first request that is not done. */
  #answer(): void {
    let answered = 0;
    for (const request of this.#inflight) {
      if (request.status === undefined) break;
      this.#ring.respond(request.id, request.operation, request.status);
      answered++;
    }
    if (answered === 0) return;
    this.#inflight.splice(0, answered);
    if (this.#ring.publish()) this.#options.notify();
  }
}
