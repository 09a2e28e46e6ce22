/** What disks need from outside: files, the other host's blocks, and the hook of the avoidance heuristic. */
import type { Address, Domid } from "../hypercall/ports.ts";

/** The unit of copy-on-write, of a remote fetch and of a qcow2 cluster. A guest page, so that a page of I/O is one block. */
export const BLOCK_BYTES = 4096;
export const SECTOR_BYTES = 512;

/**
 * A regular file or block device. Offsets and lengths are bytes and safe integers. Errors are a DiskError with the errno.
 * Until `sync` returns, a write may reach the disk or not, in any order, each 512-byte sector of it by itself.
 */
export interface FilePort extends Disposable {
  readonly path: string;
  size(): number;
  /** Bytes read: fewer than asked for at the end of the file only. */
  read(into: Uint8Array, offset: number): number;
  /** Writes all of `bytes`, or throws. */
  write(bytes: Uint8Array, offset: number): void;
  /** All written content, the size and (for a file made by `create`) the name are durable when this returns. */
  sync(): void;
  truncate(byteLength: number): void;
  /** Gives the space back where the file system can; the range reads as zeros in any case. */
  punchHole(offset: number, byteLength: number): void;
  /** Turns the exclusive lock of a file opened for writing into a shared one. */
  share(): void;
}

/** Files by path. */
export interface FileStore {
  /**
   * Takes a shared lock to read, an exclusive one to write, none to peek, for as long as the file is open; throws BUSY where
   * another holds the lock.
   */
  open(path: string, mode: "peek" | "read" | "write"): FilePort;
  /** A new file, open for writing; throws EEXIST. */
  create(path: string): FilePort;
  /** Absolute, without links; throws ENOENT. */
  realPath(path: string): string;
  /** Durable when this returns. */
  remove(path: string): void;
  /** Names of the regular files in a directory; undefined for what is no directory. */
  list(directory: string): string[] | undefined;
}

/** What became of a block of a frozen chain that lives on another host. */
export type BlockArrival =
  | { readonly block: number; readonly kind: "data"; readonly bytes: Uint8Array }
  | { readonly block: number; readonly kind: "zero" }
  | { readonly block: number; readonly kind: "failed"; readonly reason: string };

/** Blocks (4 KiB, counted from the disk's start) of one frozen chain of another host. Never blocks. */
export interface BlockSource extends Disposable {
  /** Readable when something has arrived: for a Poller. */
  readonly fd: number;
  /** Each block is answered once by an arrival, "failed" after the source's own retries. */
  request(blocks: readonly number[]): void;
  /** What arrived since, whether asked for or not (another host's fetch, heard by multicast, is welcome). */
  receive(): readonly BlockArrival[];
}

/** A whole guest page that a disk read is about to overwrite. */
export interface PageFill {
  /** The grant through which the guest offers the page. */
  readonly ref: number;
  /** Its new content: 4096 bytes of this process' locked memory, valid during the call only. */
  readonly address: Address;
}

/**
 * Spares the fetch of absent pages that a disk read overwrites. It is asked before the data is copied to the guest, since the
 * copy itself would make Xen ask for the page.
 */
export interface AvoidancePort {
  /** Per page 1 where the page was absent and holds the data now (no copy is made), 0 where it must be copied as usual. */
  fill(domid: Domid, pages: readonly PageFill[]): Uint8Array;
}
