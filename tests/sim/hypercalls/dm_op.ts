/** XEN_DMOP_*: operations of a device model (arch/x86/hvm/dm.c). */
import { DMOP, DmOpSetMemType, HVMMEM_RAM_RW } from "../../../hypercall/abi/mod.ts";
import { no } from "../errno.ts";
import { isPaging } from "../paging.ts";
import { type CallContext, callName, type NamedCall, unknownCall } from "./context.ts";

export function dmOp({ xen }: CallContext, domid: number, buffer: Uint8Array): NamedCall {
  if (buffer.byteLength < DmOpSetMemType.size) return { name: "dm_op", perform: () => no("EFAULT") };
  const argument = DmOpSetMemType.decode(buffer);
  const name = callName("dm_op", DMOP, argument.op);
  if (argument.op !== DMOP.set_mem_type) return unknownCall(name);
  return {
    name,
    perform() {
      const domain = xen.find(domid);
      if (domain === undefined) return no("ESRCH");
      const first = Number(argument.first_pfn);
      const last = first + argument.nr - 1;
      if (argument.nr === 0 || last > domain.memory.p2m.highest || argument.mem_type !== HVMMEM_RAM_RW) {
        return no("EINVAL");
      }
      for (let gfn = first; gfn <= last; gfn++) {
        const { type, frame } = domain.memory.p2m.get(gfn);
        if (isPaging(type)) {
          domain.paging.request(gfn, undefined);
          return no("EAGAIN");
        }
        if (frame === undefined) return no("EINVAL");
        domain.memory.p2m.set(gfn, "ram_rw", frame);
      }
      return 0;
    },
  };
}
