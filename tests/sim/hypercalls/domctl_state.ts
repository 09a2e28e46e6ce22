/** XEN_DOMCTL_*: commands on a domain's state: contexts, CPU policy, clock, page types, log-dirty, the paging ring. */
import {
  CpuPolicyOp,
  DOMCTL,
  GetPageFrameInfo3,
  HVM_SAVE,
  HvmContext,
  HvmContextPartial,
  PAGE_FRAME_INFO_MAX,
  SHADOW_OP,
  ShadowOp,
  TscInfoOp,
  VCPU_GUEST_CONTEXT,
  VCPU_GUEST_CONTEXT_BYTES,
  VcpuContext,
  VM_EVENT_INTERFACE_VERSION,
  VM_EVENT_MODE,
  VM_EVENT_OP,
  VmEventOp,
} from "../../../hypercall/abi/mod.ts";
import type { Domain } from "../domain.ts";
import { no } from "../errno.ts";
import { loadContext, saveContext } from "../hvm_context.ts";
import { isPaging } from "../paging.ts";
import type { CallContext } from "./context.ts";
import { readU64s } from "./context.ts";
import { copyPolicy, setPolicy } from "./cpu_policy.ts";

/** Far above any context. */
const CONTEXT_BYTES_MAX = 16 * 1024 * 1024;
const PAGE_TYPE_SHIFT = 28n;

export function performOnState(context: CallContext, command: number, domain: Domain, u: Uint8Array): number {
  switch (command) {
    case DOMCTL.getvcpucontext:
    case DOMCTL.setvcpucontext:
      return vcpuContext(context, command, domain, u);
    case DOMCTL.gethvmcontext:
      return getHvmContext(context, domain, u);
    case DOMCTL.sethvmcontext: {
      const { size, buffer } = HvmContext.decode(u);
      if (size > CONTEXT_BYTES_MAX) return no("ENOMEM");
      const bytes = context.space.resolve(buffer, size);
      return bytes === undefined ? no("EFAULT") : loadContext(domain, bytes, context.xen.minor);
    }
    case DOMCTL.gethvmcontext_partial:
      return getHvmContextPart(context, domain, u);
    case DOMCTL.get_cpu_policy:
      return copyPolicy(context, CpuPolicyOp.view(u), domain);
    case DOMCTL.set_cpu_policy:
      return setPolicy(context, CpuPolicyOp.view(u), domain);
    case DOMCTL.gettscinfo: {
      const { mode, khz, incarnation, elapsedNs } = domain.tsc;
      TscInfoOp.encodeInto({ tsc_mode: mode, gtsc_khz: khz, incarnation, elapsed_nsec: elapsedNs }, u);
      return 0;
    }
    case DOMCTL.settscinfo: {
      const { tsc_mode, gtsc_khz, incarnation, elapsed_nsec } = TscInfoOp.decode(u);
      if (tsc_mode > 3) return no("EINVAL");
      const khz = gtsc_khz === 0 ? domain.tsc.khz : gtsc_khz;
      domain.tsc = { mode: tsc_mode, khz, incarnation, elapsedNs: elapsed_nsec };
      return 0;
    }
    case DOMCTL.getpageframeinfo3: {
      const { num, array } = GetPageFrameInfo3.decode(u);
      if (num > BigInt(PAGE_FRAME_INFO_MAX)) return no("E2BIG");
      const gfns = readU64s(context, array, Number(num));
      const bytes = context.space.resolve(array, Number(num) * 8);
      if (gfns === undefined || bytes === undefined) return no("EFAULT");
      const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
      gfns.forEach((gfn, index) =>
        view.setBigUint64(index * 8, BigInt(domain.memory.pageInfo(gfn)) << PAGE_TYPE_SHIFT, true)
      );
      return 0;
    }
    case DOMCTL.shadow_op:
      return shadowOp(context, domain, u);
    case DOMCTL.vm_event_op:
      return vmEventOp(context, domain, u);
    default:
      return no("ENOSYS");
  }
}

function vcpuContext({ space }: CallContext, command: number, domain: Domain, u: Uint8Array): number {
  const { vcpu: index, ctxt } = VcpuContext.decode(u);
  const vcpu = domain.vcpus[index];
  if (vcpu === undefined) return no("EINVAL");
  if (command === DOMCTL.getvcpucontext && !vcpu.initialised) return no("ENODATA");
  const bytes = space.resolve(ctxt, VCPU_GUEST_CONTEXT_BYTES);
  if (bytes === undefined) return no("EFAULT");
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const registers = [["rax", VCPU_GUEST_CONTEXT.rax], ["rip", VCPU_GUEST_CONTEXT.rip], [
    "rsp",
    VCPU_GUEST_CONTEXT.rsp,
  ]] as const;
  const VGCF_ONLINE = 1n << 5n;
  if (command === DOMCTL.getvcpucontext) {
    bytes.fill(0);
    for (const [name, offset] of registers) view.setBigUint64(offset, vcpu.cpu[name], true);
    view.setBigUint64(VCPU_GUEST_CONTEXT.flags, vcpu.down ? 0n : VGCF_ONLINE, true);
    return 0;
  }
  for (const [name, offset] of registers) vcpu.cpu[name] = view.getBigUint64(offset, true);
  vcpu.initialised = true;
  vcpu.down = (view.getBigUint64(VCPU_GUEST_CONTEXT.flags, true) & VGCF_ONLINE) === 0n;
  return 0;
}

function getHvmContext({ space, xen }: CallContext, domain: Domain, u: Uint8Array): number {
  if (domain.dying) return no("EINVAL");
  const argument = HvmContext.view(u);
  const saved = saveContext(domain, xen.minor);
  if (argument.buffer === 0n) {
    // The size that is told is an upper bound: it counts records of vCPUs that are down.
    argument.size = saved.byteLength + 64;
    return 0;
  }
  if (argument.size < saved.byteLength) return no("ENOSPC");
  const target = space.resolve(argument.buffer, saved.byteLength);
  if (target === undefined) return no("EFAULT");
  target.set(saved);
  argument.size = saved.byteLength;
  return 0;
}

function getHvmContextPart({ space }: CallContext, domain: Domain, u: Uint8Array): number {
  const argument = HvmContextPartial.view(u);
  if (domain.dying) return no("EINVAL");
  const vcpu = domain.vcpus[argument.instance];
  if (vcpu === undefined) return no("ENOENT");
  const body = argument.type === HVM_SAVE.CPU ? vcpu.cpuBytes : vcpu.records.get(argument.type);
  if (argument.type === HVM_SAVE.CPU && vcpu.down) return no("ENODATA");
  if (body === undefined) return no("EINVAL");
  if (argument.buffer !== 0n) {
    if (argument.bufsz < BigInt(body.byteLength)) return no("ENOBUFS");
    const target = space.resolve(argument.buffer, body.byteLength);
    if (target === undefined) return no("EFAULT");
    target.set(body);
  }
  argument.bufsz = BigInt(body.byteLength);
  return 0;
}

function shadowOp({ space }: CallContext, domain: Domain, u: Uint8Array): number {
  const argument = ShadowOp.view(u);
  if (domain.dying) return 0;
  if (domain.vcpus.length === 0) return no("EINVAL");
  switch (argument.op) {
    case SHADOW_OP.enable_logdirty:
      return domain.memory.enableLogDirty();
    case SHADOW_OP.off:
      domain.memory.disableLogDirty();
      return 0;
    case SHADOW_OP.peek:
    case SHADOW_OP.clean: {
      if ((argument.mode & ~1) !== 0) return no("EINVAL");
      const dirty = domain.memory.dirty ?? new Set<number>();
      argument.stats_fault_count = dirty.size;
      argument.stats_dirty_count = dirty.size;
      if (argument.dirty_bitmap !== 0n) {
        const bytes = space.resolve(argument.dirty_bitmap, Math.ceil(Number(argument.pages) / 8));
        if (bytes === undefined) return no("EFAULT");
        bytes.fill(0);
        for (const gfn of dirty) {
          if (gfn < Number(argument.pages)) bytes[gfn >> 3] = (bytes[gfn >> 3] ?? 0) | 1 << gfn % 8;
        }
      }
      if (argument.op === SHADOW_OP.clean) domain.memory.cleanLogDirty();
      return 0;
    }
    default:
      return no("EINVAL");
  }
}

/** Checks in the order of vm_event_domctl() and vm_event_enable() (common/vm_event.c). */
function vmEventOp({ xen }: CallContext, domain: Domain, u: Uint8Array): number {
  const argument = VmEventOp.view(u);
  if (argument.op === VM_EVENT_OP.get_version) {
    argument.port = VM_EVENT_INTERFACE_VERSION;
    return 0;
  }
  if (domain.dying) return 0;
  if (domain.vcpus.length === 0) return no("EINVAL");
  if (argument.mode !== VM_EVENT_MODE.paging || xen.options.paging === false) return no("ENOSYS");
  switch (argument.op) {
    case VM_EVENT_OP.enable: {
      if (xen.options.pvhDom0 === true) return no("EOPNOTSUPP");
      if (domain.paging.enabled) return no("EBUSY");
      const gfn = domain.param("PAGING_RING_PFN");
      if (gfn === 0n) return no("EOPNOTSUPP");
      const { type, frame } = domain.memory.entryOf(gfn);
      if (isPaging(type)) return no("ENOENT");
      if (frame === undefined) return no("EINVAL");
      const port = xen.eventChannels.allocateUnbound(domain.domid, 0, () => void domain.paging.resume());
      if (port < 0) return port;
      domain.paging.enable(frame, port);
      argument.port = port;
      return 0;
    }
    case VM_EVENT_OP.disable: {
      const { port } = domain.paging;
      const result = domain.paging.disable();
      if (result === 0 && port !== undefined) xen.eventChannels.close(domain.domid, port, true);
      return result;
    }
    case VM_EVENT_OP.resume:
      return domain.paging.resume();
    default:
      return no("ENOSYS");
  }
}
