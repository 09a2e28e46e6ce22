/** Walks all of an image's tables: finds what is used, and what is wrong. For `check`, and for opening after a crash. */
import { ZERO } from "../layer.ts";
import type { FilePort } from "../ports.ts";
import { clusterGuard, decodeEntry } from "./cluster_map.ts";
import { CLUSTER_BYTES, type Header, REFCOUNTS_PER_BLOCK } from "./header.ts";

/** Problems beyond these are counted, not described. */
const MAX_DESCRIBED = 20;

export interface Scan {
  /** One bit a cluster of the file, least significant first. */
  readonly used: Uint8Array;
  /** One past the last used cluster. */
  readonly end: number;
  readonly fileClusters: number;
  readonly countBlocks: Uint32Array;
  readonly dataClusters: number;
  readonly zeroClusters: number;
  /** Entries that name what they must not: content is lost or mixed. */
  readonly corruptions: number;
  /** Clusters whose count is lower, and higher, than their use. Both 0 for a dirty image, whose counts mean nothing. */
  readonly undercounted: number;
  readonly leaks: number;
  readonly problems: readonly string[];
  /** File offsets of the corrupt 8-byte entries. */
  readonly corruptEntries: readonly number[];
}

export function scan(file: FilePort, header: Header): Scan {
  const fileClusters = Math.ceil(file.size() / CLUSTER_BYTES);
  const used = new Uint8Array(Math.ceil(fileClusters / 8));
  const allowed = clusterGuard(header, () => fileClusters);
  const problems: string[] = [];
  const corruptEntries: number[] = [];
  let corruptions = 0;
  let end = 0;
  const isUsed = (cluster: number) => ((used[cluster >>> 3] ?? 0) & (1 << (cluster & 7))) !== 0;
  const claim = (cluster: number): boolean => {
    if (cluster >= fileClusters || isUsed(cluster)) return false;
    used[cluster >>> 3] = (used[cluster >>> 3] ?? 0) | (1 << (cluster & 7));
    end = Math.max(end, cluster + 1);
    return true;
  };
  const problem = (text: string) => {
    corruptions++;
    if (problems.length < MAX_DESCRIBED) problems.push(text);
  };
  const readTable = (cluster: number, clusters: number): DataView => {
    const bytes = new Uint8Array(clusters * CLUSTER_BYTES);
    file.read(bytes, cluster * CLUSTER_BYTES);
    return new DataView(bytes.buffer);
  };
  const claimRange = (name: string, cluster: number, clusters: number) => {
    for (let at = cluster; at < cluster + clusters; at++) if (!claim(at)) problem(`${name} overlaps at cluster ${at}`);
  };

  const l1Clusters = Math.ceil(header.l1Entries * 8 / CLUSTER_BYTES);
  claimRange("the header", 0, 1);
  claimRange("the refcount table", header.refcountTableCluster, header.refcountTableClusters);
  claimRange("the L1 table", header.l1Cluster, l1Clusters);
  let dataClusters = 0;
  let zeroClusters = 0;
  const l1 = readTable(header.l1Cluster, l1Clusters);
  for (let index = 0; index < header.l1Entries; index++) {
    const table = decodeEntry(l1, index * 8, "l1", allowed);
    if (table === 0) continue;
    if (table === undefined || !claim(table)) {
      problem(`L1 entry ${index} is not sound`);
      corruptEntries.push(header.l1Cluster * CLUSTER_BYTES + index * 8);
      continue;
    }
    const l2 = readTable(table, 1);
    for (let at = 0; at < CLUSTER_BYTES; at += 8) {
      const cluster = decodeEntry(l2, at, "l2", allowed);
      if (cluster === 0) continue;
      if (cluster === ZERO) zeroClusters++;
      else if (cluster !== undefined && claim(cluster)) dataClusters++;
      else {
        problem(`entry ${at / 8} of L2 table ${index} is not sound`);
        corruptEntries.push(table * CLUSTER_BYTES + at);
      }
    }
  }

  // Last, so that a stale block of counts never takes a cluster from data.
  const countBlocks = new Uint32Array(header.refcountTableClusters * CLUSTER_BYTES / 8);
  const countTable = readTable(header.refcountTableCluster, header.refcountTableClusters);
  for (let index = 0; index < countBlocks.length; index++) {
    const entry = countTable.getBigUint64(index * 8);
    const cluster = entry / BigInt(CLUSTER_BYTES);
    if (entry === 0n) continue;
    const sound = entry % BigInt(CLUSTER_BYTES) === 0n && cluster < BigInt(fileClusters) && claim(Number(cluster));
    if (sound) countBlocks[index] = Number(cluster);
    else if (!header.dirty) problem(`refcount table entry ${index} is not sound`);
  }
  const { undercounted, leaks } = header.dirty
    ? { undercounted: 0, leaks: 0 }
    : compareCounts(countBlocks, fileClusters, isUsed, (cluster) => readTable(cluster, 1));
  return {
    used,
    end,
    fileClusters,
    countBlocks,
    dataClusters,
    zeroClusters,
    corruptions,
    undercounted,
    leaks,
    problems,
    corruptEntries,
  };
}

function compareCounts(
  countBlocks: Uint32Array,
  fileClusters: number,
  isUsed: (cluster: number) => boolean,
  read: (cluster: number) => DataView,
) {
  let undercounted = 0;
  let leaks = 0;
  for (let first = 0; first < fileClusters; first += REFCOUNTS_PER_BLOCK) {
    const block = countBlocks[first / REFCOUNTS_PER_BLOCK] ?? 0;
    const counts = block === 0 ? undefined : read(block);
    for (let at = 0; at < REFCOUNTS_PER_BLOCK && first + at < fileClusters; at++) {
      const wanted = isUsed(first + at) ? 1 : 0;
      const count = counts?.getUint16(at * 2) ?? 0;
      if (count < wanted) undercounted++;
      else if (count > wanted) leaks++;
    }
  }
  return { undercounted, leaks };
}

/** Clusters below `end` that nothing uses. */
export function* unusedClusters(used: Uint8Array, end: number): Generator<number> {
  for (let cluster = 0; cluster < end; cluster++) {
    if (((used[cluster >>> 3] ?? 0) & (1 << (cluster & 7))) === 0) yield cluster;
  }
}
