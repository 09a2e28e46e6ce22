/** Hypercalls by number. */
import {
  CAPABILITIES_BYTES,
  EvtchnAllocUnbound,
  EvtchnBindInterdomain,
  EvtchnClose,
  EVTCHNOP,
  EvtchnSend,
  EvtchnStatus,
  EXTRAVERSION_BYTES,
  HVM_PARAM,
  HVMOP,
  HvmParam,
  HYPERCALL,
  MulticallEntry,
  SCHEDOP,
  SchedRemoteShutdown,
  XENVER,
} from "../../../hypercall/abi/mod.ts";
import { errno } from "../../../hypercall/errors.ts";
import { no } from "../errno.ts";
import { type CallContext, callName, faultyCall, type NamedCall, readAt, unknownCall, viewAt } from "./context.ts";
import { domctl } from "./domctl.ts";
import { memoryOp } from "./memory_op.ts";
import { sysctl } from "./sysctl.ts";

/** Each entry is a hypercall of its own, except that none is a multicall. */
const MULTICALL_MAX = 1 << 20;

/** The hypercall that the process makes; its work is done by `perform`. */
export function decodeCall(context: CallContext, op: number, args: readonly bigint[]): NamedCall {
  const [first = 0n, second = 0n] = args;
  switch (op) {
    case HYPERCALL.domctl:
      return domctl(context, first);
    case HYPERCALL.sysctl:
      return sysctl(context, first);
    case HYPERCALL.memory_op:
      return memoryOp(context, Number(first), second);
    case HYPERCALL.hvm_op:
      return hvmOp(context, Number(first), second);
    case HYPERCALL.event_channel_op:
      return eventChannelOp(context, Number(first), second);
    case HYPERCALL.sched_op:
      return schedOp(context, Number(first), second);
    case HYPERCALL.xen_version:
      return xenVersion(context, Number(first), second);
    case HYPERCALL.multicall:
      return { name: "multicall", perform: () => multicall(context, first, Number(second)) };
    default:
      return unknownCall(callName("hypercall", HYPERCALL, op));
  }
}

function multicall(context: CallContext, address: bigint, count: number): number {
  if (count > MULTICALL_MAX) return no("EINVAL");
  const bytes = context.space.resolve(address, count * MulticallEntry.size);
  if (bytes === undefined) return no("EFAULT");
  // Plain reads instead of a view for each entry: lists have thousands.
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const argument = MulticallEntry.offsets.args;
  for (let at = 0; at < bytes.byteLength; at += MulticallEntry.size) {
    const op = Number(view.getBigUint64(at + MulticallEntry.offsets.op, true));
    const args = [view.getBigUint64(at + argument, true), view.getBigUint64(at + argument + 8, true)];
    view.setBigInt64(at + MulticallEntry.offsets.result, BigInt(multicallEntry(context, op, args)), true);
  }
  return 0;
}

function multicallEntry(context: CallContext, op: number, args: readonly bigint[]): number {
  if (op === HYPERCALL.multicall) return no("EINVAL");
  const call = decodeCall(context, op, args);
  const fate = context.faults.planned(call.name);
  return typeof fate === "object" ? -errno(fate.errno) : call.perform();
}

const EXTRA = ".5-sim";
const CAPABILITIES = "xen-3.0-x86_64 hvm-3.0-x86_32 hvm-3.0-x86_32p hvm-3.0-x86_64";

function xenVersion(context: CallContext, command: number, address: bigint): NamedCall {
  const name = callName("xen_version", XENVER, command);
  const text = (value: string, byteLength: number): NamedCall => ({
    name,
    perform() {
      const bytes = context.space.resolve(address, byteLength);
      if (bytes === undefined) return no("EFAULT");
      bytes.fill(0);
      new TextEncoder().encodeInto(value, bytes);
      return 0;
    },
  });
  switch (command) {
    case XENVER.version:
      return { name, perform: () => context.xen.major << 16 | context.xen.minor };
    case XENVER.extraversion:
      return text(EXTRA, EXTRAVERSION_BYTES);
    case XENVER.capabilities:
      return text(CAPABILITIES, CAPABILITIES_BYTES);
    default:
      return unknownCall(name);
  }
}

/** Parameters that no longer exist: 4, 13, 20 to 26, 30. */
const DEPRECATED: ReadonlySet<number> = new Set([4, 13, 20, 21, 22, 23, 24, 25, 26, 30]);
const SET_ONCE: ReadonlySet<number> = new Set([
  HVM_PARAM.VIRIDIAN,
  HVM_PARAM.IOREQ_PFN,
  HVM_PARAM.BUFIOREQ_PFN,
  HVM_PARAM.IOREQ_SERVER_PFN,
  HVM_PARAM.NR_IOREQ_SERVER_PAGES,
  HVM_PARAM.ALTP2M,
  HVM_PARAM.MCA_CAP,
]);
const PARAMS = 39;
const TIMER_MODE_MAX = 3n;

function hvmOp(context: CallContext, command: number, address: bigint): NamedCall {
  const name = callName("hvm_op", HVMOP, command);
  if (command !== HVMOP.set_param && command !== HVMOP.get_param) return unknownCall(name);
  const argument = viewAt(context, HvmParam, address);
  if (argument === undefined) return faultyCall(name);
  return {
    name,
    perform() {
      const { domid, index, value } = argument;
      if (index >= PARAMS) return no("EINVAL");
      const domain = context.xen.find(domid);
      if (domain === undefined) return no("ESRCH");
      if (DEPRECATED.has(index)) return no("EINVAL");
      const old = domain.params.get(index) ?? 0n;
      if (command === HVMOP.get_param) {
        argument.value = old;
        return 0;
      }
      if (SET_ONCE.has(index) && old !== 0n && old !== value) return no("EEXIST");
      if (index === HVM_PARAM.TIMER_MODE && value > TIMER_MODE_MAX) return no("EINVAL");
      if (index === HVM_PARAM.NR_IOREQ_SERVER_PAGES && value === 0n) return no("EINVAL");
      if (index === HVM_PARAM.X87_FIP_WIDTH && ![0n, 4n, 8n].includes(value)) return no("EINVAL");
      domain.params.set(index, value);
      return 0;
    },
  };
}

function eventChannelOp(context: CallContext, command: number, address: bigint): NamedCall {
  const name = callName("event_channel_op", EVTCHNOP, command);
  const channels = context.xen.eventChannels;
  switch (command) {
    case EVTCHNOP.alloc_unbound: {
      const argument = viewAt(context, EvtchnAllocUnbound, address);
      if (argument === undefined) return faultyCall(name);
      return {
        name,
        perform() {
          const port = channels.allocateUnbound(argument.dom, argument.remote_dom);
          if (port > 0) argument.port = port;
          return Math.min(port, 0);
        },
      };
    }
    case EVTCHNOP.bind_interdomain: {
      const argument = viewAt(context, EvtchnBindInterdomain, address);
      if (argument === undefined) return faultyCall(name);
      return {
        name,
        perform() {
          const port = channels.bindInterdomain(0, argument.remote_dom, argument.remote_port);
          if (port > 0) argument.local_port = port;
          return Math.min(port, 0);
        },
      };
    }
    case EVTCHNOP.close: {
      const argument = readAt(context, EvtchnClose, address);
      return argument === undefined ? faultyCall(name) : { name, perform: () => channels.close(0, argument.port) };
    }
    case EVTCHNOP.send: {
      const argument = readAt(context, EvtchnSend, address);
      return argument === undefined ? faultyCall(name) : { name, perform: () => channels.send(0, argument.port) };
    }
    case EVTCHNOP.status: {
      const argument = viewAt(context, EvtchnStatus, address);
      if (argument === undefined) return faultyCall(name);
      const STATUS = { closed: 0, unbound: 1, interdomain: 2 };
      return {
        name,
        perform() {
          const status = channels.status(argument.dom, argument.port);
          argument.status = STATUS[status?.state ?? "closed"];
          argument.u_dom = status?.remoteDomid ?? 0;
          argument.u_port = status?.remotePort ?? 0;
          return 0;
        },
      };
    }
    default:
      return unknownCall(name);
  }
}

function schedOp(context: CallContext, command: number, address: bigint): NamedCall {
  const name = callName("sched_op", SCHEDOP, command);
  if (command !== SCHEDOP.remote_shutdown) return unknownCall(name);
  const argument = readAt(context, SchedRemoteShutdown, address);
  if (argument === undefined) return faultyCall(name);
  return {
    name,
    perform() {
      const domain = context.xen.find(argument.domain_id);
      if (domain === undefined) return no("ESRCH");
      domain.shutdown(argument.reason);
      return 0;
    },
  };
}
