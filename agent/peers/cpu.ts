/** Whether this host's processor can run a guest: every feature that the guest was shown must be offered here too. */
import { CpuidLeaf } from "../../hypercall/abi/mod.ts";
import type { CpuPolicy } from "../../hypercall/xen_api.ts";
import { FEATURES } from "./cpu_features.ts";

type Register = "a" | "b" | "c" | "d";

/** Most features that a message names. */
const MAX_NAMED = 32;

/** Registers that are sets of features. Bits in `ignored` say how a machine is set up, not what it can do. */
const FEATURE_WORDS: readonly { leaf: number; subleaf: number; register: Register; ignored: number }[] = [
  // OSXSAVE follows CR4; the hypervisor bit is Xen's own.
  { leaf: 1, subleaf: 0, register: "c", ignored: bits(27, 31) },
  // The APIC bit follows a register, HTT the number of vCPUs.
  { leaf: 1, subleaf: 0, register: "d", ignored: bits(9, 28) },
  // Two bits of 7.b say that something is missing (FDP_EXCP_ONLY, no FPU selectors).
  { leaf: 7, subleaf: 0, register: "b", ignored: bits(6, 13) },
  // OSPKE follows CR4.
  { leaf: 7, subleaf: 0, register: "c", ignored: bits(4) },
  // A hybrid part, and a bug's presence or absence.
  { leaf: 7, subleaf: 0, register: "d", ignored: bits(15) },
  { leaf: 7, subleaf: 1, register: "a", ignored: 0 },
  { leaf: 7, subleaf: 1, register: "d", ignored: 0 },
  { leaf: 0xd, subleaf: 0, register: "a", ignored: 0 },
  { leaf: 0xd, subleaf: 0, register: "d", ignored: 0 },
  { leaf: 0xd, subleaf: 1, register: "a", ignored: 0 },
  // CMP_LEGACY follows the number of vCPUs.
  { leaf: 0x8000_0001, subleaf: 0, register: "c", ignored: bits(1) },
  // The APIC bit again.
  { leaf: 0x8000_0001, subleaf: 0, register: "d", ignored: bits(9) },
];

/** Leaves whose `a` is the highest leaf of their range. */
const MAXIMA = [[0, "basic"], [0x8000_0000, "extended"]] as const;

function bits(...numbers: readonly number[]): number {
  return numbers.reduce((mask, bit) => mask | (1 << bit), 0) >>> 0;
}

/**
 * What a guest with `policy` needs and a host that offers at most `host` (XEN_SYSCTL_cpu_policy_hvm_max) lacks, by names for a
 * person; empty if the guest can run there. Throws a RangeError if either is no list of leaves.
 */
export function missingFeatures(policy: CpuPolicy, host: CpuPolicy): string[] {
  const wanted = leavesOf(policy);
  const offered = leavesOf(host);
  const missing: string[] = [];
  const vendor = vendorOf(wanted);
  if (vendor !== vendorOf(offered)) missing.push(`a processor of ${vendor} (this one is of ${vendorOf(offered)})`);
  for (const [leaf, range] of MAXIMA) {
    const needs = wanted.get(key(leaf, 0))?.a ?? 0;
    const has = offered.get(key(leaf, 0))?.a ?? 0;
    if (needs > has) missing.push(`${range} CPUID leaves up to 0x${needs.toString(16)} (here: 0x${has.toString(16)})`);
  }
  for (const { leaf, subleaf, register, ignored } of FEATURE_WORDS) {
    const needs = wanted.get(key(leaf, subleaf))?.[register] ?? 0;
    const has = offered.get(key(leaf, subleaf))?.[register] ?? 0;
    const lacking = (needs & ~has & ~ignored) >>> 0;
    for (let bit = 0; bit < 32; bit++) {
      if (((lacking >>> bit) & 1) === 0) continue;
      const word = `${leaf.toString(16)}.${subleaf}.${register}`;
      missing.push(FEATURES[word]?.[bit] ?? `CPUID ${word} bit ${bit}`);
    }
  }
  return missing.length <= MAX_NAMED ? missing : [...missing.slice(0, MAX_NAMED), `${missing.length - MAX_NAMED} more`];
}

interface Leaf {
  readonly a: number;
  readonly b: number;
  readonly c: number;
  readonly d: number;
}

const key = (leaf: number, subleaf: number): string => `${leaf >>> 0}/${subleaf >>> 0}`;

function leavesOf({ leaves }: CpuPolicy): Map<string, Leaf> {
  if (leaves.length === 0 || leaves.length % CpuidLeaf.size !== 0) {
    throw new RangeError("The CPU policy has no whole leaves");
  }
  const found = new Map<string, Leaf>();
  for (let at = 0; at < leaves.length; at += CpuidLeaf.size) {
    const { leaf, subleaf, a, b, c, d } = CpuidLeaf.decode(leaves, at);
    // Leaves without subleaves have 0xffffffff (XEN_CPUID_NO_SUBLEAF, public/arch-x86/xen.h).
    found.set(key(leaf, subleaf === 0xffff_ffff ? 0 : subleaf), { a, b, c, d });
  }
  return found;
}

function vendorOf(leaves: ReadonlyMap<string, Leaf>): string {
  const leaf = leaves.get(key(0, 0));
  if (leaf === undefined) return "an unknown vendor";
  const bytes = new Uint8Array(12);
  const view = new DataView(bytes.buffer);
  [leaf.b, leaf.d, leaf.c].forEach((word, at) => view.setUint32(at * 4, word, true));
  return new TextDecoder("latin1").decode(bytes).replaceAll(/[^\x20-\x7e]/g, "?");
}
