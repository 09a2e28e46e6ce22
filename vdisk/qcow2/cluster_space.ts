/**
 * The clusters of an image file: which are free, and the reference counts that say so on the disk. Counts are not kept up to date
 * while an image is in use (qcow2's "lazy refcounts", with the dirty bit set): they are written as a whole when it is sealed, and
 * found again by a scan after a crash.
 */
import { DiskError } from "../errors.ts";
import type { FilePort } from "../ports.ts";
import { CLUSTER_BYTES, type Header, REFCOUNTS_PER_BLOCK } from "./header.ts";

/** Free clusters beyond these are forgotten: `check` shows them as leaks and gives them back. */
const MAX_FREE = 1_000_000;

export class ClusterSpace {
  readonly #file: FilePort;
  readonly #header: Header;
  /** Cluster of each block of counts, 0 where there is none. */
  readonly #countBlocks: Uint32Array;
  readonly #free = new Set<number>();
  /** Free once the next flush has made their loss of meaning durable. */
  #freed: number[] = [];
  #end: number;

  /** `end` is the first cluster past the used ones. */
  constructor(file: FilePort, header: Header, end: number, countBlocks: Uint32Array, free: Iterable<number>) {
    this.#file = file;
    this.#header = header;
    this.#end = end;
    this.#countBlocks = countBlocks;
    for (const cluster of free) if (this.#free.size < MAX_FREE) this.#free.add(cluster);
  }

  get end(): number {
    return this.#end;
  }

  /** What the refcount table can count. */
  get #limit(): number {
    return Math.min(this.#header.refcountTableClusters * (CLUSTER_BYTES / 8) * REFCOUNTS_PER_BLOCK, 2 ** 32 - 1);
  }

  /** At most `count` neighbouring clusters, at least one. Throws ENOSPC when the image can hold no more. */
  take(count: number): { position: number; count: number } {
    const room = Math.min(count, this.#limit - this.#end);
    if (room > 0 && (count > 1 || this.#free.size === 0)) {
      const position = this.#end;
      this.#end += room;
      return { position, count: room };
    }
    for (const position of this.#free) {
      this.#free.delete(position);
      return { position, count: 1 };
    }
    throw new DiskError(`allocate in ${this.#file.path}`, "ENOSPC", "the image can hold no more clusters");
  }

  /** Clusters that were taken and that nothing names. */
  giveBack(position: number, count: number): void {
    if (position + count === this.#end) this.#end = position;
    else for (let at = 0; at < count && this.#free.size < MAX_FREE; at++) this.#free.add(position + at);
  }

  /** A cluster that an entry on the disk may still name. */
  release(cluster: number): void {
    if (this.#freed.length < MAX_FREE) this.#freed.push(cluster);
  }

  /** A flush is done: nothing on the disk names the released clusters any more. */
  settle(): void {
    for (const cluster of this.#freed) this.giveBack(cluster, 1);
    this.#freed = [];
  }

  /** Writes the counts: blocks first, then, after a sync, the table that names them. The caller syncs again. */
  writeCounts(): void {
    for (let index = 0; index * REFCOUNTS_PER_BLOCK < this.#end; index++) {
      if (this.#countBlocks[index] === 0) this.#countBlocks[index] = this.take(1).position;
    }
    const block = new Uint8Array(CLUSTER_BYTES);
    const view = new DataView(block.buffer);
    for (let index = 0; index < this.#countBlocks.length; index++) {
      const cluster = this.#countBlocks[index] ?? 0;
      if (cluster === 0) continue;
      for (let at = 0; at < REFCOUNTS_PER_BLOCK; at++) {
        const counted = index * REFCOUNTS_PER_BLOCK + at;
        view.setUint16(at * 2, counted < this.#end && !this.#free.has(counted) ? 1 : 0);
      }
      this.#file.write(block, cluster * CLUSTER_BYTES);
    }
    this.#file.sync();
    const table = new Uint8Array(this.#header.refcountTableClusters * CLUSTER_BYTES);
    const tableView = new DataView(table.buffer);
    this.#countBlocks.forEach((cluster, index) =>
      tableView.setBigUint64(index * 8, BigInt(cluster) * BigInt(CLUSTER_BYTES))
    );
    this.#file.write(table, this.#header.refcountTableCluster * CLUSTER_BYTES);
  }
}
