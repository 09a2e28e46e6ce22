/** Errors that xenstored names, and ones of the connection to it. */
const TEXT = {
  EINVAL: "invalid argument",
  EACCES: "not allowed",
  EEXIST: "exists already",
  EISDIR: "is a directory",
  ENOENT: "no such node",
  ENOMEM: "out of memory",
  ENOSPC: "the quota is used up",
  EIO: "input/output error",
  ENOTEMPTY: "not empty",
  ENOSYS: "not known to this xenstored",
  EROFS: "read-only",
  EBUSY: "busy",
  EAGAIN: "changed meanwhile",
  EISCONN: "connected already",
  E2BIG: "too big",
  EPERM: "not permitted",
  ECONNRESET: "the connection to xenstored is lost",
  ENOBUFS: "too many requests at once",
} as const;

export type XenstoreErrorCode = keyof typeof TEXT;

/** `Cannot read /local/domain/7/name: ENOENT (no such node)`. Branch on `code`. */
export class XenstoreError extends Error {
  readonly code: XenstoreErrorCode;

  /** `operation` completes "Cannot ...". */
  constructor(operation: string, code: XenstoreErrorCode, options?: ErrorOptions) {
    super(`Cannot ${operation}: ${code} (${TEXT[code]})`, options);
    this.name = "XenstoreError";
    this.code = code;
  }
}

/** The code in an ERROR message; one that is not known counts as EIO. */
export function errorCodeOf(text: string): XenstoreErrorCode {
  return Object.hasOwn(TEXT, text) ? text as XenstoreErrorCode : "EIO";
}
