/** What a restore takes over of a machine beside its memory and its CPUs: HVM parameters, and the page that one of them names. */
import type { Domid, ForeignMemoryPort } from "../../hypercall/ports.ts";
import type { Xen } from "../../hypercall/xen_api.ts";
import type { GuestShape } from "./descriptor.ts";

/** HVM parameters (public/hvm/params.h). */
export const HvmParam = {
  storePfn: 1,
  storeEvtchn: 2,
  identPt: 12,
  consolePfn: 17,
  consoleEvtchn: 18,
  pagingRing: 27,
} as const;
/** Parameters that a restore sets (xg_sr_save_x86_hvm.c), but for those that name frames. */
const COPIED_PARAMS = [9, 10, 19, 34, 36, 37, 38] as const;

export function copiedParams(xen: Xen, domid: Domid): Map<number, bigint> {
  const params = new Map<number, bigint>();
  for (const index of COPIED_PARAMS) {
    const value = xen.hvmParam(domid, index);
    if (value !== 0n) params.set(index, value);
  }
  return params;
}

/** The page of the identity page table; empty where there is none. */
export function identityPageTable(foreignMemory: ForeignMemoryPort, domid: Domid, shape: GuestShape): Uint8Array {
  const gfn = shape.memory.frames.get(HvmParam.identPt);
  if (gfn === undefined) return new Uint8Array();
  using mapping = foreignMemory.map(domid, BigUint64Array.of(gfn), { write: false });
  return mapping.errors[0] === 0 ? mapping.bytes.slice() : new Uint8Array();
}
