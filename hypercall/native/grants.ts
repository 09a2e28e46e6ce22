/** Grants of other domains through `/dev/xen/gntdev` (drivers/xen/gntdev.c). */
import {
  GNTCOPY,
  GNTDEV,
  GntdevCopySegment,
  GntdevForeignEnd,
  GntdevGrantCopy,
  GntdevGrantRef,
  GntdevMapHead,
  GntdevUnmap,
} from "../abi/mod.ts";
import { XenError } from "../errors.ts";
import { type CopyEnd, type CopySegment, type Domid, type GrantPort, PAGE_BYTES, type PinnedMemory } from "../ports.ts";
import { addressOf, type Libc, O_RDWR } from "./libc.ts";
import { Region } from "./region.ts";

/** Segments of one call. */
const COPY_BATCH = 1024;
/** The device's own limit, per mapping (module parameter `limit`). */
const REFS_MAX = 65_536;

export class Grants implements GrantPort {
  readonly #libc: Libc;
  readonly #fd: number;
  /** Held here so that the list stays where its address says. */
  readonly #segments = new Uint8Array(COPY_BATCH * GntdevCopySegment.size);

  constructor(libc: Libc) {
    this.#libc = libc;
    this.#fd = libc.openFile("/dev/xen/gntdev", O_RDWR, "is the module xen-gntdev loaded?");
  }

  copy(segments: readonly CopySegment[]): Int16Array {
    const statuses = new Int16Array(segments.length);
    for (let start = 0; start < segments.length; start += COPY_BATCH) {
      const count = Math.min(COPY_BATCH, segments.length - start);
      for (let index = 0; index < count; index++) {
        const segment = segments[start + index];
        if (segment !== undefined) encodeSegment(segment, this.#segments, index * GntdevCopySegment.size);
      }
      const argument = GntdevGrantCopy.encode({ count, segments: addressOf(this.#segments) });
      const result = this.#libc.ioctl(this.#fd, GNTDEV.GRANT_COPY, argument);
      if (result < 0) throw new XenError(`copy ${count} segments by grant`, result);
      for (let index = 0; index < count; index++) {
        statuses[start + index] = GntdevCopySegment.view(this.#segments, index * GntdevCopySegment.size).status;
      }
    }
    return statuses;
  }

  map(domid: Domid, refs: readonly number[], { write }: { readonly write: boolean }): PinnedMemory {
    const count = refs.length;
    const operation = `map ${count} grants of domain ${domid}`;
    if (count === 0 || count > REFS_MAX) throw new RangeError(`cannot ${operation}: from 1 to ${REFS_MAX} are`);
    const argument = new Uint8Array(GntdevMapHead.size + count * GntdevGrantRef.size);
    GntdevMapHead.encodeInto({ count }, argument);
    refs.forEach((ref, index) =>
      GntdevGrantRef.encodeInto({ domid, ref }, argument, GntdevMapHead.size + index * GntdevGrantRef.size)
    );
    const result = this.#libc.ioctl(this.#fd, GNTDEV.MAP_GRANT_REF, argument);
    if (result < 0) throw new XenError(operation, result);
    const { index } = GntdevMapHead.decode(argument);
    const release = () => {
      this.#libc.ioctl(this.#fd, GNTDEV.UNMAP_GRANT_REF, GntdevUnmap.encode({ index, count }));
    };
    try {
      const byteLength = count * PAGE_BYTES;
      const region = new Region(this.#libc, operation, { fd: this.#fd, byteLength, offset: index, write });
      return new GrantMapping(region, release);
    } catch (error) {
      release();
      throw error;
    }
  }

  [Symbol.dispose](): void {
    this.#libc.close(this.#fd);
  }
}

class GrantMapping implements PinnedMemory {
  readonly #region: Region;
  readonly #release: () => void;
  #mapped = true;

  constructor(region: Region, release: () => void) {
    this.#region = region;
    this.#release = release;
  }
  get address() {
    return this.#region.address;
  }
  get bytes() {
    return this.#region.bytes;
  }
  /** To be disposed of before the port that made it. */
  [Symbol.dispose](): void {
    if (!this.#mapped) return;
    this.#mapped = false;
    this.#region[Symbol.dispose]();
    this.#release();
  }
}

function encodeSegment({ source, dest, byteLength }: CopySegment, bytes: Uint8Array, offset: number): void {
  GntdevCopySegment.encodeInto(
    {
      source: encodeEnd(source),
      dest: encodeEnd(dest),
      len: byteLength,
      flags: ("ref" in source ? GNTCOPY.source_gref : 0) | ("ref" in dest ? GNTCOPY.dest_gref : 0),
    },
    bytes,
    offset,
  );
}

function encodeEnd(end: CopyEnd): Uint8Array {
  if ("ref" in end) return GntdevForeignEnd.encode({ ref: end.ref, offset: end.offset, domid: end.domid });
  const bytes = new Uint8Array(8);
  new DataView(bytes.buffer).setBigUint64(0, end.address, true);
  return bytes;
}
