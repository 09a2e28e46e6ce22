/** Calls on a domain's memory: what is where, giving and taking pages, which were written. */
import {
  DMOP,
  DmOpSetMemType,
  GetPageFrameInfo3,
  HYPERCALL,
  MaximumGpfn,
  MemoryReservation,
  PAGE_FRAME_INFO_MAX,
  SHADOW_OP,
  ShadowOp,
  XENMEM,
} from "../abi/mod.ts";
import { errno, XenError } from "../errors.ts";
import type { Domid, Gfn } from "../ports.ts";
import type { Xen } from "../xen_api.ts";
import { bytesOf, type Invoker } from "./invoke.ts";

/** Extents of one call: their list is 64 KiB. */
const EXTENTS_BATCH = 8192;

type MemoryCalls = Pick<
  Xen,
  | "maximumGfn"
  | "pageTypes"
  | "populate"
  | "decreaseReservation"
  | "logDirtyEnable"
  | "logDirtyOff"
  | "logDirtyPeek"
  | "setMemoryType"
>;

export function memoryCalls(invoker: Invoker): MemoryCalls {
  /** How many extents were done before one was not. */
  function reserve(operation: string, command: number, domid: Domid, gfns: BigUint64Array, order: number): number {
    for (let start = 0; start < gfns.length; start += EXTENTS_BATCH) {
      const batch = gfns.subarray(start, start + EXTENTS_BATCH);
      const argument = MemoryReservation.encode({
        extent_start: invoker.bufferOf(bytesOf(batch)).address,
        nr_extents: BigInt(batch.length),
        extent_order: order,
        domid,
      });
      const done = invoker.command(operation, HYPERCALL.memory_op, command, argument);
      if (done < batch.length) return start + done;
    }
    return gfns.length;
  }

  function shadow(operation: string, domid: Domid, op: number): void {
    invoker.domctl(operation, "shadow_op", domid, ShadowOp.encode({ op }));
  }

  return {
    maximumGfn(domid) {
      const argument = MaximumGpfn.encode({ domid });
      const operation = `read the highest page of domain ${domid}`;
      return BigInt(invoker.command(operation, HYPERCALL.memory_op, XENMEM.maximum_gpfn, argument)) as Gfn;
    },

    pageTypes(domid, gfns) {
      const types = new Uint8Array(gfns.length);
      for (let start = 0; start < gfns.length; start += PAGE_FRAME_INFO_MAX) {
        const batch = gfns.subarray(start, start + PAGE_FRAME_INFO_MAX);
        const buffer = invoker.bufferOf(bytesOf(batch));
        const u = GetPageFrameInfo3.encode({ num: BigInt(batch.length), array: buffer.address });
        invoker.domctl(`read the page types of domain ${domid}`, "getpageframeinfo3", domid, u);
        for (let index = 0; index < batch.length; index++) {
          // Bits 28-31 of a little-endian u64.
          types[start + index] = (buffer.bytes[index * 8 + 3] ?? 0) >>> 4;
        }
      }
      return types;
    },

    populate(domid, gfns, order) {
      const operation = `add ${gfns.length} extents of order ${order} to domain ${domid}`;
      const done = reserve(operation, XENMEM.populate_physmap, domid, gfns, order);
      if (done !== gfns.length) throw new XenError(`${operation} (${done} were added)`, errno("ENOMEM"));
    },

    decreaseReservation(domid, gfns) {
      const operation = `take ${gfns.length} pages from domain ${domid}`;
      const done = reserve(operation, XENMEM.decrease_reservation, domid, gfns, 0);
      if (done !== gfns.length) throw new XenError(`${operation} (${done} were taken)`, errno("EINVAL"));
    },

    logDirtyEnable: (domid) => shadow(`log the writes of domain ${domid}`, domid, SHADOW_OP.enable_logdirty),
    logDirtyOff: (domid) => shadow(`stop logging the writes of domain ${domid}`, domid, SHADOW_OP.off),

    logDirtyPeek(domid, pages) {
      const byteLength = Math.ceil(Number(pages) / 8);
      const buffer = invoker.buffer(byteLength);
      // Xen leaves what lies beyond its own bitmap untouched.
      buffer.bytes.fill(0, 0, byteLength);
      const u = ShadowOp.encode({ op: SHADOW_OP.peek, dirty_bitmap: buffer.address, pages });
      invoker.domctl(`read the written pages of domain ${domid}`, "shadow_op", domid, u);
      return buffer.bytes.slice(0, byteLength);
    },

    setMemoryType(domid, type, first, pages) {
      const operation = DmOpSetMemType.encode({
        op: DMOP.set_mem_type,
        nr: pages,
        mem_type: type,
        first_pfn: first,
      });
      return invoker.port.deviceModelOp(domid, operation);
    },
  };
}
