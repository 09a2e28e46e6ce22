/** XEN_SYSCTL_* (public/sysctl.h): commands on the host. */
import { array, bytes, struct } from "../struct.ts";

/** `XEN_SYSCTL_*`. */
export const SYSCTL = { physinfo: 3, getdomaininfolist: 6, get_cpu_policy: 29 } as const;

/** The envelope. `u` holds one of the structs below. */
export const Sysctl = struct("xen_sysctl", { cmd: "u32", interface_version: "u32", u: bytes(128, 8) });

export const PhysInfo = struct("xen_sysctl_physinfo", {
  threads_per_core: "u32",
  cores_per_socket: "u32",
  nr_cpus: "u32",
  max_cpu_id: "u32",
  nr_nodes: "u32",
  max_node_id: "u32",
  cpu_khz: "u32",
  capabilities: "u32",
  arch_capabilities: "u32",
  pad: "u32",
  total_pages: "u64",
  free_pages: "u64",
  scrub_pages: "u64",
  outstanding_pages: "u64",
  max_mfn: "u64",
  hw_cap: array("u32", 8),
});
/** `XEN_SYSCTL_PHYSCAP_*`. */
export const PHYSCAP = { hvm: 1, pv: 2, directio: 4, hap: 8, shadow: 16 } as const;

/** `buffer`: getdomaininfo structs, from `first_domain` upwards. */
export const GetDomainInfoList = struct("xen_sysctl_getdomaininfolist", {
  first_domain: "u16",
  max_domains: "u32",
  buffer: "u64",
  num_domains: "u32",
});

export const SysctlCpuPolicy = struct("xen_sysctl_cpu_policy", {
  index: "u32",
  nr_leaves: "u32",
  nr_msrs: "u32",
  _rsvd: "u32",
  leaves: "u64",
  msrs: "u64",
});
/** `XEN_SYSCTL_cpu_policy_*`. */
export const CPU_POLICY_INDEX = {
  raw: 0,
  host: 1,
  pv_max: 2,
  hvm_max: 3,
  pv_default: 4,
  hvm_default: 5,
} as const;
