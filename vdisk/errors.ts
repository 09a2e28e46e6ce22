/** Errors of disks and their images. Branch on `code`, never on text. */
import type { ErrorCode } from "../hypercall/errors.ts";

/** What can be wrong with an image or a disk, besides a system call's errno. */
export type DiskFault =
  /** The file's content contradicts itself or leaves its bounds. */
  | "CORRUPT"
  /** A valid file that uses what this program does not do. */
  | "UNSUPPORTED"
  /** A file outside the allowed directories. */
  | "NOT_ALLOWED"
  /** A backing chain that meets itself, or is too long. */
  | "CYCLE"
  | "TOO_LONG"
  /** Writing to a layer that others stand on. */
  | "FROZEN"
  /** In use by another, or in a state that excludes the operation. */
  | "BUSY"
  /** A layer of another host, and no source for it. */
  | "NO_SOURCE"
  | "NOT_FOUND"
  | "INVALID"
  /** An earlier write or flush failed; what the disk holds since is unknown. */
  | "FAILED";

/** `Cannot open image /var/a.qcow2: CORRUPT (the L1 table lies outside the file)`. */
export class DiskError extends Error {
  readonly code: ErrorCode | DiskFault;
  readonly operation: string;

  /** `operation` completes "Cannot ...": "open image /var/a.qcow2". */
  constructor(operation: string, code: ErrorCode | DiskFault, detail: string, options?: ErrorOptions) {
    super(`Cannot ${operation}: ${code} (${detail})`, options);
    this.name = "DiskError";
    this.code = code;
    this.operation = operation;
  }
}
