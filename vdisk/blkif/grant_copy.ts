/** Moves the data of a batch of requests between the guest and the staging memory, in one grant copy each way. */
import type { Address, CopySegment, Domid, GrantPort, PinnedMemory } from "../../hypercall/ports.ts";
import { type AvoidancePort, BLOCK_BYTES, type PageFill, SECTOR_BYTES } from "../ports.ts";
import { type DiskRequest } from "./request.ts";
import { RSP_ERROR, Segment } from "./abi.ts";

/** What all disks of a thread share: it does one thing at a time. */
export interface CopyDevices {
  readonly grants: GrantPort;
  /**
   * Ordinary locked memory, page aligned. Not that of /dev/xen/hypercall: gntdev pins its pages by get_user_pages, which refuses
   * such mappings (VM_IO).
   */
  readonly staging: PinnedMemory;
  readonly avoidance?: AvoidancePort;
}

export interface CopyCounts {
  /** Calls of the grant port: each is one ioctl. */
  copies: number;
  copiedSegments: number;
  avoidedPages: number;
}

export class GuestCopier {
  readonly #devices: CopyDevices;
  readonly #domid: Domid;
  readonly counts: CopyCounts = { copies: 0, copiedSegments: 0, avoidedPages: 0 };

  constructor(devices: CopyDevices, domid: Domid) {
    this.#devices = devices;
    this.#domid = domid;
  }

  get stagingBytes(): number {
    return this.#devices.staging.bytes.byteLength;
  }

  staged(request: DiskRequest): Uint8Array {
    return this.#devices.staging.bytes.subarray(request.stagingOffset, request.stagingOffset + request.byteLength);
  }

  /** Gives each indirect request its segments; they pass through the staging memory at `stagingOffset`. */
  fetchSegments(requests: readonly DiskRequest[]): void {
    const bytesOf = (request: DiskRequest) => request.segments * Segment.size;
    const failed = this.#copy(
      requests.map((request) => ({
        source: { domid: this.#domid, ref: request.indirectRef ?? 0, offset: 0 },
        dest: { address: this.#address(request.stagingOffset) },
        byteLength: bytesOf(request),
      })),
    );
    requests.forEach((request, index) => {
      if (failed[index] !== 0) {
        request.refuse(RSP_ERROR, `the indirect page's grant ${request.indirectRef}: status ${failed[index]}`);
        return;
      }
      const start = request.stagingOffset;
      request.takeSegments(this.#devices.staging.bytes.slice(start, start + bytesOf(request)));
    });
  }

  /** Guest to staging. A request whose grants fail is refused. */
  fetchData(requests: readonly DiskRequest[]): void {
    this.#copyData(requests, "fetch", undefined);
  }

  /** Staging to guest, but for absent pages that the avoidance port fills. */
  deliverData(requests: readonly DiskRequest[]): void {
    this.#copyData(requests, "deliver", this.#fillAbsent(requests));
  }

  /** Per segment, in order, 1 where the page holds the data already. */
  #fillAbsent(requests: readonly DiskRequest[]): Uint8Array | undefined {
    const { avoidance } = this.#devices;
    if (avoidance === undefined) return undefined;
    const pages: PageFill[] = [];
    const pageSegments: number[] = [];
    let segment = 0;
    forEachSegment(requests, (request, index, offset, byteLength) => {
      if (byteLength === BLOCK_BYTES) {
        pages.push({ ref: request.refs[index] ?? 0, address: this.#address(request.stagingOffset + offset) });
        pageSegments.push(segment);
      }
      segment++;
    });
    const filled = new Uint8Array(segment);
    if (pages.length === 0) return filled;
    const answers = avoidance.fill(this.#domid, pages);
    pageSegments.forEach((at, index) => {
      filled[at] = answers[index] ?? 0;
      this.counts.avoidedPages += filled[at] ?? 0;
    });
    return filled;
  }

  #copyData(requests: readonly DiskRequest[], direction: "fetch" | "deliver", skip: Uint8Array | undefined): void {
    const copies: CopySegment[] = [];
    let segment = 0;
    forEachSegment(requests, (request, index, offset, byteLength) => {
      if (skip?.[segment++] === 1) return;
      const local = { address: this.#address(request.stagingOffset + offset) };
      const guest = {
        domid: this.#domid,
        ref: request.refs[index] ?? 0,
        offset: (request.firsts[index] ?? 0) * SECTOR_BYTES,
      };
      copies.push(
        direction === "fetch" ? { source: guest, dest: local, byteLength } : { source: local, dest: guest, byteLength },
      );
    });
    const statuses = this.#copy(copies);
    let copied = 0;
    segment = 0;
    forEachSegment(requests, (request, index) => {
      if (skip?.[segment++] === 1) return;
      const status = statuses[copied++];
      if (status !== 0) request.reason ??= `segment ${index}, grant ${request.refs[index]}: status ${status}`;
    });
    for (const request of requests) if (request.reason !== undefined) request.refuse(RSP_ERROR, request.reason);
  }

  #copy(segments: readonly CopySegment[]): ArrayLike<number> {
    if (segments.length === 0) return [];
    this.counts.copies++;
    this.counts.copiedSegments += segments.length;
    return this.#devices.grants.copy(segments);
  }

  #address(offset: number): Address {
    return (this.#devices.staging.address + BigInt(offset)) as Address;
  }
}

/** Calls with each segment's index, and where its bytes are among its request's. */
function forEachSegment(
  requests: readonly DiskRequest[],
  visit: (request: DiskRequest, index: number, offset: number, byteLength: number) => void,
): void {
  for (const request of requests) {
    let offset = 0;
    for (let index = 0; index < request.segments; index++) {
      const byteLength = ((request.lasts[index] ?? 0) - (request.firsts[index] ?? 0) + 1) * SECTOR_BYTES;
      visit(request, index, offset, byteLength);
      offset += byteLength;
    }
  }
}
