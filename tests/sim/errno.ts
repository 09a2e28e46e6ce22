import { errno } from "../../hypercall/errors.ts";

/** The negative errno that a hypercall returns. */
export function no(code: Parameters<typeof errno>[0]): number {
  return -errno(code);
}

/** What Xen would have died of: the program under test did something that brings the whole host down. */
export class HostCrash extends Error {
  override readonly name = "HostCrash";
}

/** Thrown by every call of a process that was killed: nothing it does reaches Xen any more. */
export class ProcessKilled extends Error {
  override readonly name = "ProcessKilled";
}
