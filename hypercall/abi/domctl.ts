/** XEN_DOMCTL_* (public/domctl.h): commands on one domain. */
import { bytes, type InitOf, struct } from "../struct.ts";
import type { DomctlInterface } from "./versions.ts";

/** `XEN_DOMCTL_*`. */
export const DOMCTL = {
  createdomain: 1,
  destroydomain: 2,
  pausedomain: 3,
  unpausedomain: 4,
  getdomaininfo: 5,
  shadow_op: 10,
  max_mem: 11,
  setvcpucontext: 12,
  getvcpucontext: 13,
  max_vcpus: 15,
  setdomainhandle: 17,
  settimeoffset: 24,
  resumedomain: 27,
  subscribe: 29,
  gethvmcontext: 33,
  sethvmcontext: 34,
  gethvmcontext_partial: 55,
  vm_event_op: 56,
  gettscinfo: 59,
  settscinfo: 60,
  getpageframeinfo3: 61,
  get_cpu_policy: 82,
  set_cpu_policy: 83,
  get_paging_mempool_size: 85,
  set_paging_mempool_size: 86,
} as const;

/** The envelope. `u` holds one of the structs below. */
export const Domctl = struct("xen_domctl", { cmd: "u32", interface_version: "u32", domain: "u16", u: bytes(128, 8) });

const ArchDomainConfig = struct("xen_arch_domainconfig", { emulation_flags: "u32", misc_flags: "u32" });

const CREATE_HEAD = {
  ssidref: "u32",
  handle: bytes(16),
  flags: "u32",
  iommu_opts: "u32",
  max_vcpus: "u32",
  max_evtchn_port: "u32",
  max_grant_frames: "i32",
  max_maptrack_frames: "i32",
  grant_opts: "u32",
} as const;
const CREATE_TAIL = { vmtrace_size: "u32", cpupool_id: "u32", arch: ArchDomainConfig } as const;

/** Interfaces 0x15 and 0x16 (Xen 4.17, 4.18). */
export const CreateDomain15 = struct("xen_domctl_createdomain", { ...CREATE_HEAD, ...CREATE_TAIL });
/** Interface 0x17 (Xen 4.19, 4.20). From 4.21 on `altp2m_opts` is split into u16 `opts` and u16 `nr`: zero either way. */
export const CreateDomain17 = struct("xen_domctl_createdomain", {
  ...CREATE_HEAD,
  altp2m_opts: "u32",
  ...CREATE_TAIL,
});

/** What can be asked of a new domain in every interface. */
export type CreateDomainInit = InitOf<typeof CreateDomain15>;

/** The layout of createdomain in this interface. */
export function createDomainLayout(version: DomctlInterface): typeof CreateDomain15 | typeof CreateDomain17 {
  return version <= 0x16 ? CreateDomain15 : CreateDomain17;
}

/** `XEN_DOMCTL_CDF_*`. */
export const CDF = { hvm: 1, hap: 2 } as const;
/** `XEN_X86_EMU_LAPIC`: exactly this is a PVH domain. */
export const X86_EMU_LAPIC = 1;
/** `XEN_DOMCTL_GRANT_version(2)`. */
export const GRANT_VERSION_2 = 2;

export const GetDomainInfo = struct("xen_domctl_getdomaininfo", {
  domain: "u16",
  pad1: "u16",
  flags: "u32",
  tot_pages: "u64",
  max_pages: "u64",
  outstanding_pages: "u64",
  shr_pages: "u64",
  paged_pages: "u64",
  shared_info_frame: "u64",
  cpu_time: "u64",
  nr_online_vcpus: "u32",
  max_vcpu_id: "u32",
  ssidref: "u32",
  handle: bytes(16),
  cpupool: "u32",
  gpaddr_bits: "u8",
  pad2: bytes(7),
  arch_config: ArchDomainConfig,
});

/** `XEN_DOMINF_*`; the shutdown reason is bits 16-23. */
export const DOMINF = {
  dying: 1,
  hvm_guest: 2,
  shutdown: 4,
  paused: 8,
  blocked: 16,
  running: 32,
  debugged: 64,
  xs_domain: 128,
  hap: 256,
} as const;
export const DOMINF_SHUTDOWN_SHIFT = 16;

export const MaxVcpus = struct("xen_domctl_max_vcpus", { max: "u32" });
/** KiB. */
export const MaxMem = struct("xen_domctl_max_mem", { max_memkb: "u64" });
/** Bytes, a multiple of the page size. */
export const PagingMempool = struct("xen_domctl_paging_mempool", { size: "u64" });
export const Subscribe = struct("xen_domctl_subscribe", { port: "u32" });
export const SetTimeOffset = struct("xen_domctl_settimeoffset", { time_offset_seconds: "i64" });

export const ShadowOp = struct("xen_domctl_shadow_op", {
  op: "u32",
  mode: "u32",
  mb: "u32",
  dirty_bitmap: "u64",
  pages: "u64",
  stats_fault_count: "u32",
  stats_dirty_count: "u32",
});
/** `XEN_DOMCTL_SHADOW_OP_*`. */
export const SHADOW_OP = { off: 0, enable_logdirty: 2, clean: 11, peek: 12 } as const;

/** `ctxt` points to a {@link VCPU_GUEST_CONTEXT_BYTES} struct. */
export const VcpuContext = struct("xen_domctl_vcpucontext", { vcpu: "u32", ctxt: "u64" });
/** sizeof(vcpu_guest_context_t), x86-64. */
export const VCPU_GUEST_CONTEXT_BYTES = 5168;
/** Where vcpu_guest_context holds what a resume edits or reads. */
export const VCPU_GUEST_CONTEXT = { flags: 512, rax: 600, rip: 648, rsp: 672, ctrlreg: 4984 } as const;

export const HvmContext = struct("xen_domctl_hvmcontext", { size: "u32", buffer: "u64" });
export const HvmContextPartial = struct("xen_domctl_hvmcontext_partial", {
  type: "u32",
  instance: "u32",
  bufsz: "u64",
  buffer: "u64",
});

export const CpuPolicyOp = struct("xen_domctl_cpu_policy", {
  nr_leaves: "u32",
  nr_msrs: "u32",
  leaves: "u64",
  msrs: "u64",
  err_leaf: "u32",
  err_subleaf: "u32",
  err_msr: "u32",
});
/** public/arch-x86/xen.h. */
export const CpuidLeaf = struct("xen_cpuid_leaf", {
  leaf: "u32",
  subleaf: "u32",
  a: "u32",
  b: "u32",
  c: "u32",
  d: "u32",
});
export const MsrEntry = struct("xen_msr_entry", { idx: "u32", flags: "u32", val: "u64" });

export const TscInfoOp = struct("xen_domctl_tsc_info", {
  tsc_mode: "u32",
  gtsc_khz: "u32",
  incarnation: "u32",
  pad: "u32",
  elapsed_nsec: "u64",
});

/** `port` is `u.enable.port`, or `u.version`. */
export const VmEventOp = struct("xen_domctl_vm_event_op", { op: "u32", mode: "u32", port: "u32" });
/** `XEN_VM_EVENT_*`. */
export const VM_EVENT_OP = { enable: 0, disable: 1, resume: 2, get_version: 3 } as const;
/** `XEN_DOMCTL_VM_EVENT_OP_*`: which ring. */
export const VM_EVENT_MODE = { paging: 1, monitor: 2, sharing: 3 } as const;

/** `array`: u64 each, in a gfn, out its type << 28. */
export const GetPageFrameInfo3 = struct("xen_domctl_getpageframeinfo3", { num: "u64", array: "u64" });
export const PAGE_FRAME_INFO_MAX = 1024;
/** `XEN_DOMCTL_PFINFO_*` >> 28. */
export const PAGE_TYPE = { none: 0, xtab: 0xf } as const;
