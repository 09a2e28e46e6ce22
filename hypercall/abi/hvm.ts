/** hvm_op and its parameters (public/hvm/hvm_op.h, params.h), the saved context (public/arch-x86/hvm/save.h), dm_op (public/hvm/dm_op.h). */
import { array, bytes, struct } from "../struct.ts";

/** `HVMOP_*`. */
export const HVMOP = { set_param: 0, get_param: 1 } as const;
export const HvmParam = struct("xen_hvm_param", { domid: "u16", pad: "u16", index: "u32", value: "u64" });

/** `HVM_PARAM_*`. */
export const HVM_PARAM = {
  CALLBACK_IRQ: 0,
  STORE_PFN: 1,
  STORE_EVTCHN: 2,
  IOREQ_PFN: 5,
  BUFIOREQ_PFN: 6,
  VIRIDIAN: 9,
  TIMER_MODE: 10,
  HPET_ENABLED: 11,
  IDENT_PT: 12,
  ACPI_S_STATE: 14,
  VM86_TSS: 15,
  VPT_ALIGN: 16,
  CONSOLE_PFN: 17,
  CONSOLE_EVTCHN: 18,
  ACPI_IOPORTS_LOCATION: 19,
  PAGING_RING_PFN: 27,
  MONITOR_RING_PFN: 28,
  SHARING_RING_PFN: 29,
  TRIPLE_FAULT_REASON: 31,
  IOREQ_SERVER_PFN: 32,
  NR_IOREQ_SERVER_PAGES: 33,
  VM_GENERATION_ID_ADDR: 34,
  ALTP2M: 35,
  X87_FIP_WIDTH: 36,
  VM86_TSS_SIZED: 37,
  MCA_CAP: 38,
} as const;

/** Before each record of a saved context. */
export const HvmSaveDescriptor = struct("hvm_save_descriptor", { typecode: "u16", instance: "u16", length: "u32" });
/** `HVM_SAVE_CODE`. */
export const HVM_SAVE = {
  END: 0,
  HEADER: 1,
  CPU: 2,
  LAPIC: 5,
  LAPIC_REGS: 6,
  MTRR: 14,
  CPU_XSAVE: 16,
  VMCE_VCPU: 18,
  TSC_ADJUST: 19,
  CPU_MSR: 20,
} as const;
export const HVM_FILE_MAGIC = 0x54381286;

export const HvmSaveHeader = struct("hvm_save_header", {
  magic: "u32",
  version: "u32",
  changeset: "u64",
  cpuid: "u32",
  gtsc_khz: "u32",
});

export const HvmHwCpu = struct("hvm_hw_cpu", {
  fpu_regs: bytes(512),
  rax: "u64",
  rbx: "u64",
  rcx: "u64",
  rdx: "u64",
  rbp: "u64",
  rsi: "u64",
  rdi: "u64",
  rsp: "u64",
  r8: "u64",
  r9: "u64",
  r10: "u64",
  r11: "u64",
  r12: "u64",
  r13: "u64",
  r14: "u64",
  r15: "u64",
  rip: "u64",
  rflags: "u64",
  cr0: "u64",
  cr2: "u64",
  cr3: "u64",
  cr4: "u64",
  dr0: "u64",
  dr1: "u64",
  dr2: "u64",
  dr3: "u64",
  dr6: "u64",
  dr7: "u64",
  cs_sel: "u32",
  ds_sel: "u32",
  es_sel: "u32",
  fs_sel: "u32",
  gs_sel: "u32",
  ss_sel: "u32",
  tr_sel: "u32",
  ldtr_sel: "u32",
  cs_limit: "u32",
  ds_limit: "u32",
  es_limit: "u32",
  fs_limit: "u32",
  gs_limit: "u32",
  ss_limit: "u32",
  tr_limit: "u32",
  ldtr_limit: "u32",
  idtr_limit: "u32",
  gdtr_limit: "u32",
  cs_base: "u64",
  ds_base: "u64",
  es_base: "u64",
  fs_base: "u64",
  gs_base: "u64",
  ss_base: "u64",
  tr_base: "u64",
  ldtr_base: "u64",
  idtr_base: "u64",
  gdtr_base: "u64",
  cs_arbytes: "u32",
  ds_arbytes: "u32",
  es_arbytes: "u32",
  fs_arbytes: "u32",
  gs_arbytes: "u32",
  ss_arbytes: "u32",
  tr_arbytes: "u32",
  ldtr_arbytes: "u32",
  sysenter_cs: "u64",
  sysenter_esp: "u64",
  sysenter_eip: "u64",
  shadow_gs: "u64",
  msr_flags: "u64",
  msr_lstar: "u64",
  msr_star: "u64",
  msr_cstar: "u64",
  msr_syscall_mask: "u64",
  msr_efer: "u64",
  msr_tsc_aux: "u64",
  tsc: "u64",
  pending_event: "u32",
  error_code: "u32",
  flags: "u32",
  pad0: "u32",
});

/** Xen 4.17 to 4.19; Xen takes the short one in later versions too, extended with zeros. */
export const HvmHwLapic17 = struct("hvm_hw_lapic", {
  apic_base_msr: "u64",
  disabled: "u32",
  timer_divisor: "u32",
  tdt_msr: "u64",
});
/** From Xen 4.20 on. */
export const HvmHwLapic20 = struct("hvm_hw_lapic", { ...HvmHwLapic17.fields, pending_esr: "u32" });

export const HvmHwMtrr = struct("hvm_hw_mtrr", {
  msr_pat_cr: "u64",
  msr_mtrr_var: array("u64", 16),
  msr_mtrr_fixed: array("u64", 11),
  msr_mtrr_cap: "u64",
  msr_mtrr_def_type: "u64",
});

/** A dm_op buffer: `op` and `pad`, then the operation's struct. */
export const DmOpSetMemType = struct("xen_dm_op_set_mem_type_buffer", {
  op: "u32",
  pad: "u32",
  nr: "u32",
  mem_type: "u16",
  pad2: "u16",
  first_pfn: "u64",
});
/** `XEN_DMOP_*`. */
export const DMOP = { set_mem_type: 12 } as const;
/** `HVMMEM_ram_rw`. */
export const HVMMEM_RAM_RW = 0;
