/** CPU policies in and out (arch/x86/domctl.c, lib/x86/policy.c). */
import { CpuidLeaf, MsrEntry } from "../../../hypercall/abi/mod.ts";
import type { Domain } from "../domain.ts";
import { no } from "../errno.ts";
import type { SimXen } from "../sim_xen.ts";
import type { CallContext } from "./context.ts";

interface PolicyArgument {
  nr_leaves: number;
  nr_msrs: number;
  readonly leaves: bigint;
  readonly msrs: bigint;
}

/** Null pointers ask for the counts. ENOBUFS where a list is too short. */
export function copyPolicy(
  { space }: CallContext,
  argument: PolicyArgument,
  policy: { readonly leaves: Uint8Array; readonly msrs: Uint8Array },
): number {
  const leaves = policy.leaves.byteLength / CpuidLeaf.size;
  const msrs = policy.msrs.byteLength / MsrEntry.size;
  if (argument.leaves !== 0n) {
    if (argument.nr_leaves < leaves) return no("ENOBUFS");
    const target = space.resolve(argument.leaves, policy.leaves.byteLength);
    if (target === undefined) return no("EFAULT");
    target.set(policy.leaves);
  }
  argument.nr_leaves = leaves;
  if (argument.msrs !== 0n) {
    if (argument.nr_msrs < msrs) return no("ENOBUFS");
    const target = space.resolve(argument.msrs, policy.msrs.byteLength);
    if (target === undefined) return no("EFAULT");
    target.set(policy.msrs);
  }
  argument.nr_msrs = msrs;
  return 0;
}

interface SetPolicyArgument extends PolicyArgument {
  err_leaf: number;
  err_subleaf: number;
  err_msr: number;
}

const NOWHERE = 0xffff_ffff;

/** Frozen by the first unpause (EEXIST). A leaf or feature that the host has not got is refused, and named. */
export function setPolicy(
  { space, xen }: CallContext & { readonly xen: SimXen },
  argument: SetPolicyArgument,
  domain: Domain,
): number {
  argument.err_leaf = NOWHERE;
  argument.err_subleaf = NOWHERE;
  argument.err_msr = NOWHERE;
  if (domain.creationFinished) return no("EEXIST");
  const leaves = space.resolve(argument.leaves, argument.nr_leaves * CpuidLeaf.size)?.slice();
  const msrs = space.resolve(argument.msrs, argument.nr_msrs * MsrEntry.size)?.slice();
  if (leaves === undefined || msrs === undefined) return no("EFAULT");
  const host = leavesOf(xen.cpuPolicy.leaves);
  for (const leaf of leavesOf(leaves)) {
    const offered = host.find((other) => other.leaf === leaf.leaf && other.subleaf === leaf.subleaf);
    const isFeatures = leaf.leaf === 1 || leaf.leaf === 7;
    const tooMuch = offered !== undefined && isFeatures &&
      ((leaf.b & ~offered.b) !== 0 && leaf.leaf === 7 || (leaf.c & ~offered.c) !== 0 || (leaf.d & ~offered.d) !== 0);
    if (offered !== undefined && !tooMuch) continue;
    argument.err_leaf = leaf.leaf;
    argument.err_subleaf = leaf.subleaf;
    return no("EINVAL");
  }
  domain.leaves = leaves;
  domain.msrs = msrs;
  return 0;
}

function leavesOf(bytes: Uint8Array) {
  return Array.from(
    { length: bytes.byteLength / CpuidLeaf.size },
    (_, index) => CpuidLeaf.decode(bytes, index * CpuidLeaf.size),
  );
}
