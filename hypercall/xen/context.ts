/** Calls that read and set what a domain is besides its memory: vCPUs, HVM context and parameters, CPU policy, clock. */
import {
  CpuidLeaf,
  CpuPolicyOp,
  HvmContext,
  HVMOP,
  HvmParam,
  HYPERCALL,
  MsrEntry,
  TscInfoOp,
  VCPU_GUEST_CONTEXT_BYTES,
  VcpuContext,
} from "../abi/mod.ts";
import { errno, XenError } from "../errors.ts";
import type { CpuPolicy, Xen } from "../xen_api.ts";
import type { Invoker } from "./invoke.ts";

/** A record of 1 KiB or so a vCPU, and vCPUs are at most 128 in a domain: far above both. */
const CONTEXT_BYTES_MAX = 4 * 1024 * 1024;
/** Xen's own are some 200 leaves and a handful of MSRs. */
const POLICY_ENTRIES_MAX = 65_536;

type ContextCalls = Pick<
  Xen,
  | "vcpuContext"
  | "setVcpuContext"
  | "hvmContext"
  | "setHvmContext"
  | "cpuPolicy"
  | "setCpuPolicy"
  | "tscInfo"
  | "setTscInfo"
  | "hvmParam"
  | "setHvmParam"
>;

export function contextCalls(invoker: Invoker): ContextCalls {
  return {
    vcpuContext(domid, vcpu) {
      const buffer = invoker.buffer(VCPU_GUEST_CONTEXT_BYTES);
      const u = VcpuContext.encode({ vcpu, ctxt: buffer.address });
      invoker.domctl(`read vCPU ${vcpu} of domain ${domid}`, "getvcpucontext", domid, u);
      return buffer.bytes.slice(0, VCPU_GUEST_CONTEXT_BYTES);
    },

    setVcpuContext(domid, vcpu, context) {
      if (context.byteLength !== VCPU_GUEST_CONTEXT_BYTES) {
        throw new RangeError(`a vCPU's context is ${VCPU_GUEST_CONTEXT_BYTES} bytes, not ${context.byteLength}`);
      }
      const u = VcpuContext.encode({ vcpu, ctxt: invoker.bufferOf(context).address });
      invoker.domctl(`set vCPU ${vcpu} of domain ${domid}`, "setvcpucontext", domid, u);
    },

    hvmContext(domid) {
      const operation = `read the HVM context of domain ${domid}`;
      const asked = HvmContext.decode(invoker.domctl(operation, "gethvmcontext", domid, HvmContext.encode({})));
      if (asked.size > CONTEXT_BYTES_MAX) throw new XenError(`${operation} of ${asked.size} bytes`, errno("E2BIG"));
      const buffer = invoker.buffer(asked.size);
      const u = HvmContext.encode({ size: asked.size, buffer: buffer.address });
      const { size } = HvmContext.decode(invoker.domctl(operation, "gethvmcontext", domid, u));
      return buffer.bytes.slice(0, Math.min(size, asked.size));
    },

    setHvmContext(domid, context) {
      const u = HvmContext.encode({ size: context.byteLength, buffer: invoker.bufferOf(context).address });
      invoker.domctl(`set the HVM context of domain ${domid}`, "sethvmcontext", domid, u);
    },

    cpuPolicy(domid) {
      const operation = `read the CPU policy of domain ${domid}`;
      return readCpuPolicy(
        invoker,
        operation,
        (pointers) =>
          CpuPolicyOp.decode(invoker.domctl(operation, "get_cpu_policy", domid, CpuPolicyOp.encode(pointers))),
      );
    },

    setCpuPolicy(domid, { leaves, msrs }) {
      const buffer = invoker.buffer(leaves.byteLength + msrs.byteLength);
      buffer.bytes.set(leaves);
      buffer.bytes.set(msrs, leaves.byteLength);
      const u = CpuPolicyOp.encode({
        nr_leaves: Math.floor(leaves.byteLength / CpuidLeaf.size),
        nr_msrs: Math.floor(msrs.byteLength / MsrEntry.size),
        leaves: buffer.address,
        msrs: buffer.address + BigInt(leaves.byteLength),
      });
      const answer = invoker.tryDomctl("set_cpu_policy", domid, u);
      if (answer.result >= 0) return;
      const { err_leaf, err_subleaf, err_msr } = CpuPolicyOp.decode(answer.u);
      const place = [err_leaf, err_subleaf, err_msr].map((part) => `0x${part.toString(16)}`);
      const where = `(leaf ${place[0]}, subleaf ${place[1]}, MSR ${place[2]})`;
      throw new XenError(`set the CPU policy of domain ${domid} ${where}`, answer.result);
    },

    tscInfo(domid) {
      const u = invoker.domctl(`read the clock of domain ${domid}`, "gettscinfo", domid, TscInfoOp.encode({}));
      const info = TscInfoOp.decode(u);
      return {
        mode: info.tsc_mode,
        khz: info.gtsc_khz,
        incarnation: info.incarnation,
        elapsedNs: info.elapsed_nsec,
      };
    },

    setTscInfo(domid, { mode, khz, incarnation, elapsedNs }) {
      const u = TscInfoOp.encode({ tsc_mode: mode, gtsc_khz: khz, incarnation, elapsed_nsec: elapsedNs });
      invoker.domctl(`set the clock of domain ${domid}`, "settscinfo", domid, u);
    },

    hvmParam(domid, index) {
      const argument = HvmParam.encode({ domid, index });
      invoker.command(`read HVM parameter ${index} of domain ${domid}`, HYPERCALL.hvm_op, HVMOP.get_param, argument);
      return HvmParam.decode(argument).value;
    },

    setHvmParam(domid, index, value) {
      const argument = HvmParam.encode({ domid, index, value });
      const operation = `set HVM parameter ${index} of domain ${domid} to 0x${value.toString(16)}`;
      invoker.command(operation, HYPERCALL.hvm_op, HVMOP.set_param, argument);
    },
  };
}

interface PolicyPointers {
  readonly nr_leaves?: number;
  readonly nr_msrs?: number;
  readonly leaves?: bigint;
  readonly msrs?: bigint;
}

/** Asks for the counts (null pointers), then for the policy. */
export function readCpuPolicy(
  invoker: Invoker,
  operation: string,
  ask: (pointers: PolicyPointers) => { readonly nr_leaves: number; readonly nr_msrs: number },
): CpuPolicy {
  const capacity = ask({});
  if (Math.max(capacity.nr_leaves, capacity.nr_msrs) > POLICY_ENTRIES_MAX) {
    throw new XenError(`${operation} of ${capacity.nr_leaves} leaves and ${capacity.nr_msrs} MSRs`, errno("E2BIG"));
  }
  const leafBytes = capacity.nr_leaves * CpuidLeaf.size;
  const buffer = invoker.buffer(leafBytes + capacity.nr_msrs * MsrEntry.size);
  const got = ask({
    nr_leaves: capacity.nr_leaves,
    nr_msrs: capacity.nr_msrs,
    leaves: buffer.address,
    msrs: buffer.address + BigInt(leafBytes),
  });
  if (got.nr_leaves > capacity.nr_leaves || got.nr_msrs > capacity.nr_msrs) {
    throw new XenError(`${operation}, which grew meanwhile`, errno("EAGAIN"));
  }
  return {
    leaves: buffer.bytes.slice(0, got.nr_leaves * CpuidLeaf.size),
    msrs: buffer.bytes.slice(leafBytes, leafBytes + got.nr_msrs * MsrEntry.size),
  };
}
