/** XENMEM_*: operations on a domain's memory. */
import {
  AddToPhysmap,
  MaximumGpfn,
  MemoryReservation,
  MemPagingOp,
  PAGING_OP,
  RemoveFromPhysmap,
  XENMAPSPACE,
  XENMEM,
} from "../../../hypercall/abi/mod.ts";
import { PAGE_BYTES } from "../../../hypercall/ports.ts";
import { no } from "../errno.ts";
import { type CallContext, callName, faultyCall, type NamedCall, readAt, readU64s, unknownCall } from "./context.ts";

export function memoryOp(context: CallContext, command: number, address: bigint): NamedCall {
  const name = callName("memory_op", XENMEM, command);
  switch (command) {
    case XENMEM.populate_physmap:
    case XENMEM.decrease_reservation:
      return reservation(context, name, command, address);
    case XENMEM.maximum_gpfn: {
      const argument = readAt(context, MaximumGpfn, address);
      if (argument === undefined) return faultyCall(name);
      return { name, perform: () => context.xen.find(argument.domid)?.memory.p2m.highest ?? no("ESRCH") };
    }
    case XENMEM.add_to_physmap:
      return addToPhysmap(context, name, address);
    case XENMEM.remove_from_physmap: {
      const argument = readAt(context, RemoveFromPhysmap, address);
      if (argument === undefined) return faultyCall(name);
      return {
        name,
        perform() {
          const domain = context.xen.find(argument.domid);
          return domain === undefined ? no("ESRCH") : domain.memory.removeFromPhysmap(Number(argument.gpfn));
        },
      };
    }
    case XENMEM.paging_op:
      return pagingOp(context, address);
    default:
      return unknownCall(name);
  }
}

function reservation(context: CallContext, name: string, command: number, address: bigint): NamedCall {
  const argument = readAt(context, MemoryReservation, address);
  if (argument === undefined) return faultyCall(name);
  return {
    name,
    perform() {
      const domain = context.xen.find(argument.domid);
      if (domain === undefined) return no("ESRCH");
      if (domain.dying) return 0;
      // An unreadable list is "none done", not an error.
      const gfns = readU64s(context, argument.extent_start, Number(argument.nr_extents));
      if (gfns === undefined) return 0;
      if (command === XENMEM.populate_physmap) return domain.memory.populate(gfns, argument.extent_order);
      return argument.extent_order === 0 ? domain.memory.decrease(gfns) : 0;
    },
  };
}

function addToPhysmap(context: CallContext, name: string, address: bigint): NamedCall {
  const argument = readAt(context, AddToPhysmap, address);
  if (argument === undefined) return faultyCall(name);
  return {
    name,
    perform() {
      const domain = context.xen.find(argument.domid);
      if (domain === undefined) return no("ESRCH");
      if (argument.space === XENMAPSPACE.shared_info) return domain.mapSharedInfo(Number(argument.gpfn));
      if (argument.space !== XENMAPSPACE.grant_table) return no("ENOSYS");
      return domain.mapGrantFrame(Number(argument.idx), Number(argument.gpfn));
    },
  };
}

/** Checks in the order of mem_paging_memop() (arch/x86/mm/mem_paging.c). */
function pagingOp(context: CallContext, address: bigint): NamedCall {
  const argument = readAt(context, MemPagingOp, address);
  if (argument === undefined) return faultyCall("paging");
  return {
    name: callName("paging", PAGING_OP, argument.op),
    perform() {
      if (context.xen.options.paging === false) return no("ENOSYS");
      if (argument.domain === 0) return no("EPERM");
      const domain = context.xen.find(argument.domain);
      if (domain === undefined) return no("ESRCH");
      if (domain.dying) return no("EINVAL");
      if (!domain.paging.enabled) return no("ENODEV");
      if (argument.gfn >> 40n !== 0n) return argument.op === PAGING_OP.prep ? no("ENOENT") : no("EBUSY");
      const gfn = Number(argument.gfn);
      switch (argument.op) {
        case PAGING_OP.nominate:
          return domain.paging.nominate(gfn);
        case PAGING_OP.evict:
          return domain.paging.evict(gfn);
        case PAGING_OP.prep: {
          const { buffer } = argument;
          const content = buffer === 0n ? undefined : () => context.space.resolve(buffer, PAGE_BYTES);
          return domain.paging.prep(gfn, content);
        }
        default:
          return no("ENOSYS");
      }
    },
  };
}
