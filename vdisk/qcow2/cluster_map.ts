/**
 * Where each cluster of the disk is in the image: the L1 table, in memory as a whole, and the L2 tables, cached. In memory an
 * entry is a 32-bit cluster number (a file of 16 TiB), ABSENT or ZERO; clusters 0 and 1 hold the header and never data.
 */
import { DiskError } from "../errors.ts";
import { ABSENT, ZERO } from "../layer.ts";
import type { FilePort } from "../ports.ts";
import { CLUSTER_BYTES, type Header, L2_ENTRIES } from "./header.ts";

/** 2 KiB each: 16 MiB of memory for 16 GiB of disk. */
const MAX_TABLES = 8192;
/** More changed tables than this and the image must be flushed: they cannot be evicted. */
const MAX_DIRTY_TABLES = 4096;
const COPIED = 0x8000_0000;

interface Table {
  readonly cluster: number;
  readonly entries: Uint32Array;
  dirty: boolean;
  /** No L1 entry on the disk names the table yet. */
  fresh: boolean;
  /** Used since the last eviction. */
  touched: boolean;
}

/** Allows the clusters of `header`'s image that may hold data or L2 tables. */
export function clusterGuard(header: Header, fileClusters: () => number): (cluster: number) => boolean {
  const l1End = header.l1Cluster + Math.ceil(header.l1Entries * 8 / CLUSTER_BYTES);
  const refcountEnd = header.refcountTableCluster + header.refcountTableClusters;
  return (cluster) =>
    cluster >= 2 && cluster < fileClusters() && !(cluster >= header.l1Cluster && cluster < l1End) &&
    !(cluster >= header.refcountTableCluster && cluster < refcountEnd);
}

/** The cluster that a big-endian table entry names: ABSENT, ZERO, a cluster, or undefined for what is not sound. */
export function decodeEntry(
  view: DataView,
  offset: number,
  level: "l1" | "l2",
  allowed: (cluster: number) => boolean,
): number | undefined {
  const high = view.getUint32(offset);
  const low = view.getUint32(offset + 4);
  if (high === 0 && low === 0) return ABSENT;
  // Bit 62 says compressed, bits 56 to 61 and the low ones are reserved.
  if ((high & 0x7f00_0000) !== 0) return undefined;
  const cluster = (high & 0x00ff_ffff) * 2 ** 20 + (low >>> 12);
  const flags = low & 0xfff;
  if (level === "l2" && flags === 1) return cluster === 0 || allowed(cluster) ? ZERO : undefined;
  return flags === 0 && allowed(cluster) ? cluster : undefined;
}

export function encodeEntry(view: DataView, offset: number, entry: number): void {
  const cluster = entry === ZERO ? 0 : entry;
  view.setUint32(offset, cluster === 0 ? 0 : (COPIED | Math.floor(cluster / 2 ** 20)) >>> 0);
  view.setUint32(offset + 4, entry === ZERO ? 1 : (cluster << 12) >>> 0);
}

export class ClusterMap {
  readonly #file: FilePort;
  readonly #header: Header;
  readonly #allowed: (cluster: number) => boolean;
  readonly #l1: Uint32Array;
  readonly #tables = new Map<number, Table>();
  readonly #dirty = new Map<number, Table>();
  #recentIndex = -1;
  #recent: Table | undefined;

  /** Reads the L1 table. */
  constructor(file: FilePort, header: Header, fileClusters: () => number) {
    this.#file = file;
    this.#header = header;
    this.#allowed = clusterGuard(header, fileClusters);
    this.#l1 = new Uint32Array(header.l1Entries);
    const bytes = new Uint8Array(header.l1Entries * 8);
    this.#readExactly(bytes, header.l1Cluster * CLUSTER_BYTES);
    const view = new DataView(bytes.buffer);
    for (let index = 0; index < header.l1Entries; index++) {
      const cluster = decodeEntry(view, index * 8, "l1", this.#allowed);
      if (cluster === undefined) throw this.#corrupt(`L1 entry ${index} is not sound`);
      this.#l1[index] = cluster;
    }
  }

  /** No L2 table was ever made: the image holds nothing of its own. */
  get isEmpty(): boolean {
    return this.#l1.every((cluster) => cluster === 0);
  }

  get hasChanges(): boolean {
    return this.#dirty.size > 0;
  }

  get mustFlush(): boolean {
    return this.#dirty.size >= MAX_DIRTY_TABLES;
  }

  lookup(block: number): number {
    const table = this.#table(Math.floor(block / L2_ENTRIES));
    return table === undefined ? ABSENT : table.entries[block % L2_ENTRIES] ?? ABSENT;
  }

  /** `newTable` gives the cluster for an L2 table that is not there yet. */
  set(block: number, entry: number, newTable: () => number): void {
    const index = Math.floor(block / L2_ENTRIES);
    let table = this.#table(index);
    if (table === undefined) {
      if (index >= this.#l1.length) throw this.#corrupt(`block ${block} lies past the L1 table`);
      const cluster = newTable();
      table = { cluster, entries: new Uint32Array(L2_ENTRIES), dirty: false, fresh: true, touched: true };
      this.#l1[index] = cluster;
      this.#keep(index, table);
    }
    table.entries[block % L2_ENTRIES] = entry;
    if (!table.dirty) {
      table.dirty = true;
      this.#dirty.set(index, table);
    }
  }

  /** First half of a flush: tables that nothing on the disk names yet. They may be written beside the data. */
  writeFresh(): void {
    for (const table of this.#dirty.values()) if (table.fresh) this.#write(table);
  }

  /** Second half, after a sync: changed tables in place, and L1 entries for the fresh ones. The caller syncs again. */
  writeLinks(): void {
    const entry = new DataView(new ArrayBuffer(8));
    for (const [index, table] of this.#dirty) {
      if (table.fresh) {
        encodeEntry(entry, 0, table.cluster);
        this.#file.write(new Uint8Array(entry.buffer), this.#header.l1Cluster * CLUSTER_BYTES + index * 8);
      } else {
        this.#write(table);
      }
    }
  }

  /** After the second sync. */
  settle(): void {
    for (const table of this.#dirty.values()) {
      table.dirty = false;
      table.fresh = false;
    }
    this.#dirty.clear();
  }

  #table(index: number): Table | undefined {
    if (index === this.#recentIndex) return this.#recent;
    let table = this.#tables.get(index);
    if (table === undefined) {
      const cluster = this.#l1[index] ?? 0;
      if (cluster === 0) return undefined;
      table = this.#load(index, cluster);
      this.#keep(index, table);
    }
    table.touched = true;
    this.#recentIndex = index;
    this.#recent = table;
    return table;
  }

  #load(index: number, cluster: number): Table {
    const bytes = new Uint8Array(CLUSTER_BYTES);
    this.#readExactly(bytes, cluster * CLUSTER_BYTES);
    const view = new DataView(bytes.buffer);
    const entries = new Uint32Array(L2_ENTRIES);
    for (let at = 0; at < L2_ENTRIES; at++) {
      const entry = decodeEntry(view, at * 8, "l2", this.#allowed);
      if (entry === undefined) throw this.#corrupt(`entry ${at} of L2 table ${index} is not sound`);
      entries[at] = entry;
    }
    return { cluster, entries, dirty: false, fresh: false, touched: true };
  }

  #keep(index: number, table: Table): void {
    if (this.#tables.size >= MAX_TABLES) this.#evict();
    this.#tables.set(index, table);
    this.#recentIndex = -1;
    this.#recent = undefined;
  }

  /** A quarter of the tables goes, those not used since the last time first; changed ones stay. */
  #evict(): void {
    let left = MAX_TABLES / 4;
    for (const round of ["untouched", "any"]) {
      for (const [index, table] of this.#tables) {
        if (left === 0) return;
        if (table.dirty || (round === "untouched" && table.touched)) {
          table.touched = false;
          continue;
        }
        this.#tables.delete(index);
        left--;
      }
    }
  }

  #write(table: Table): void {
    const bytes = new Uint8Array(CLUSTER_BYTES);
    const view = new DataView(bytes.buffer);
    table.entries.forEach((entry, index) => encodeEntry(view, index * 8, entry));
    this.#file.write(bytes, table.cluster * CLUSTER_BYTES);
  }

  #readExactly(into: Uint8Array, offset: number): void {
    if (this.#file.read(into, offset) !== into.byteLength) {
      throw this.#corrupt(`the file ends before ${offset + into.byteLength}`);
    }
  }

  #corrupt(detail: string): DiskError {
    return new DiskError(`use image ${this.#file.path}`, "CORRUPT", detail);
  }
}
