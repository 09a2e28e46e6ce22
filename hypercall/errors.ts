/** Errors of Xen and of the system calls, with errno, operation and subject. Branch on `code`, never on text. */

/** Errnos that Xen and Linux share (public/errno.h), as far as this program meets them. */
const ERRNO = {
  EPERM: [1, "operation not permitted"],
  ENOENT: [2, "no such entry"],
  ESRCH: [3, "no such domain"],
  EIO: [5, "input/output error"],
  E2BIG: [7, "too big"],
  EAGAIN: [11, "try again"],
  ENOMEM: [12, "out of memory"],
  EACCES: [13, "wrong interface version, or not allowed"],
  EFAULT: [14, "bad address"],
  EBUSY: [16, "busy"],
  EEXIST: [17, "exists already"],
  EXDEV: [18, "populate-on-demand is active"],
  ENODEV: [19, "no such device"],
  EINVAL: [22, "invalid argument"],
  ENOSPC: [28, "no space left"],
  EMLINK: [31, "the domain has passed-through devices"],
  ENOSYS: [38, "not built into this Xen"],
  ENODATA: [61, "no data"],
  EOVERFLOW: [75, "too large"],
  ERESTART: [85, "interrupted"],
  EOPNOTSUPP: [95, "not supported"],
  ENOBUFS: [105, "buffer too small"],
} as const satisfies Record<string, readonly [number, string]>;

export type ErrorCode = keyof typeof ERRNO | `E${number}`;

const BY_NUMBER = new Map<number, ErrorCode>(
  Object.entries(ERRNO).map(([code, [number]]) => [number, code as ErrorCode]),
);

/** The errno's number, for comparing results: `result === -errno("ENOENT")`. */
export function errno(code: keyof typeof ERRNO): number {
  return ERRNO[code][0];
}

/** The name of an errno, from its number of either sign. */
export function errorCode(number: number): ErrorCode {
  return BY_NUMBER.get(Math.abs(number)) ?? `E${Math.abs(number)}`;
}

/** `Cannot pause domain 7: ESRCH (no such domain)`. */
export class XenError extends Error {
  readonly code: ErrorCode;
  readonly operation: string;

  /** `operation` completes "Cannot ...": "pause domain 7". `number` is an errno of either sign. */
  constructor(operation: string, number: number, options?: ErrorOptions) {
    const code = errorCode(number);
    const text = code in ERRNO ? ERRNO[code as keyof typeof ERRNO][1] : "an unknown error";
    super(`Cannot ${operation}: ${code} (${text})`, options);
    this.name = "XenError";
    this.code = code;
    this.operation = operation;
  }
}
