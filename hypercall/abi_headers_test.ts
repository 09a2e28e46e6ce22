/**
 * The ABI as declared here against the one that a C compiler sees in Xen's own headers (libxen-dev, Xen 4.17). Layouts that a later Xen
 * changed are compared with tables that pahole printed of that release.
 */
import { deepEqual, equal } from "node:assert/strict";
import * as abi from "./abi/mod.ts";
import type { AnyStruct } from "./struct.ts";

/** A struct of the headers. `members` maps our fields to C's where the two differ. */
interface Declared {
  readonly struct: AnyStruct & { readonly offsets: Readonly<Record<string, number>> };
  readonly c?: string;
  readonly members?: Readonly<Record<string, string>>;
  /** Ours stops before C's does, or goes on after it. */
  readonly sizeDiffers?: true;
}

const STRUCTS: readonly Declared[] = [
  { struct: abi.MulticallEntry },
  { struct: abi.SchedRemoteShutdown },
  { struct: abi.EvtchnAllocUnbound },
  { struct: abi.EvtchnBindInterdomain },
  { struct: abi.EvtchnClose },
  { struct: abi.EvtchnSend },
  { struct: abi.EvtchnStatus, members: { u_dom: "u.interdomain.dom", u_port: "u.interdomain.port" } },
  { struct: abi.Domctl },
  { struct: abi.CreateDomain15 },
  { struct: abi.GetDomainInfo },
  { struct: abi.MaxVcpus },
  { struct: abi.MaxMem },
  { struct: abi.PagingMempool },
  { struct: abi.Subscribe },
  { struct: abi.SetTimeOffset },
  {
    struct: abi.ShadowOp,
    members: { stats_fault_count: "stats.fault_count", stats_dirty_count: "stats.dirty_count" },
  },
  { struct: abi.VcpuContext },
  { struct: abi.HvmContext },
  { struct: abi.HvmContextPartial },
  { struct: abi.CpuPolicyOp },
  { struct: abi.CpuidLeaf },
  { struct: abi.MsrEntry },
  { struct: abi.TscInfoOp },
  { struct: abi.VmEventOp, members: { port: "u.enable.port" } },
  { struct: abi.GetPageFrameInfo3 },
  { struct: abi.Sysctl },
  { struct: abi.PhysInfo },
  { struct: abi.GetDomainInfoList },
  { struct: abi.SysctlCpuPolicy },
  { struct: abi.MemoryReservation },
  { struct: abi.AddToPhysmap },
  { struct: abi.RemoveFromPhysmap },
  { struct: abi.MemPagingOp },
  { struct: abi.AcquireResource },
  { struct: abi.GrantEntryV1 },
  { struct: abi.HvmParam },
  { struct: abi.HvmSaveDescriptor },
  { struct: abi.HvmSaveHeader },
  { struct: abi.HvmHwCpu },
  { struct: abi.HvmHwLapic17 },
  { struct: abi.HvmHwMtrr },
  {
    struct: abi.DmOpSetMemType,
    c: "struct xen_dm_op",
    members: {
      nr: "u.set_mem_type.nr",
      mem_type: "u.set_mem_type.mem_type",
      pad2: "u.set_mem_type.pad",
      first_pfn: "u.set_mem_type.first_pfn",
    },
    sizeDiffers: true,
  },
  { struct: abi.RingHeader, sizeDiffers: true },
  {
    struct: abi.VmEvent,
    members: {
      gfn: "u.mem_paging.gfn",
      p2mt: "u.mem_paging.p2mt",
      paging_flags: "u.mem_paging.flags",
      rest: "u.mem_access.gla",
    },
  },
  { struct: abi.XsdSockmsg },
  { struct: abi.XenstoreInterface },
  { struct: abi.ConsoleInterface },
  { struct: abi.PrivcmdHypercall },
  { struct: abi.PrivcmdMmapBatchV2 },
  { struct: abi.PrivcmdDmOp },
  { struct: abi.PrivcmdDmOpBuf },
  { struct: abi.PrivcmdMmapResource },
  { struct: abi.IoctlEvtchnBindInterdomain },
  { struct: abi.IoctlEvtchnBindUnboundPort },
  { struct: abi.IoctlEvtchnPort },
  { struct: abi.GntdevMapHead, c: "struct ioctl_gntdev_map_grant_ref", sizeDiffers: true },
  { struct: abi.GntdevGrantRef },
  { struct: abi.GntdevUnmap },
  { struct: abi.GntdevGrantCopy },
  { struct: abi.GntdevCopySegment, c: "struct ioctl_gntdev_grant_copy_segment" },
  {
    struct: abi.GntdevForeignEnd,
    c: "struct ioctl_gntdev_grant_copy_segment",
    members: { ref: "source.foreign.ref", offset: "source.foreign.offset", domid: "source.foreign.domid" },
    sizeDiffers: true,
  },
];

/** Numbers: ours, by the C expression that must equal them. `prefix` is put before each name of a table. */
const TABLES: readonly (readonly [prefix: string, table: Readonly<Record<string, number>>])[] = [
  ["__HYPERVISOR_", abi.HYPERCALL],
  ["XENVER_", abi.XENVER],
  ["SCHEDOP_", abi.SCHEDOP],
  ["SHUTDOWN_", abi.SHUTDOWN],
  ["EVTCHNOP_", abi.EVTCHNOP],
  ["XEN_DOMCTL_", abi.DOMCTL],
  ["XEN_DOMCTL_CDF_", abi.CDF],
  ["XEN_DOMINF_", abi.DOMINF],
  ["XEN_SYSCTL_", abi.SYSCTL],
  ["XEN_SYSCTL_PHYSCAP_", abi.PHYSCAP],
  ["XEN_SYSCTL_cpu_policy_", abi.CPU_POLICY_INDEX],
  ["XENMEM_", abi.XENMEM],
  ["XENMEM_paging_op_", abi.PAGING_OP],
  ["XENMEM_resource_", abi.RESOURCE],
  ["XENMEM_resource_grant_table_id_", abi.RESOURCE_GRANT_TABLE],
  ["XENMAPSPACE_", abi.XENMAPSPACE],
  ["GTF_", abi.GTF],
  ["GNTST_", abi.GNTST],
  ["HVMOP_", abi.HVMOP],
  ["HVM_PARAM_", abi.HVM_PARAM],
  ["XEN_DMOP_", abi.DMOP],
  ["XS_", abi.XS],
];

const NUMBERS: Readonly<Record<string, number>> = {
  DOMID_FIRST_RESERVED: abi.DOMID_FIRST_RESERVED,
  XEN_DOMCTL_INTERFACE_VERSION: abi.interfaceVersions(4, 17)?.domctl ?? 0,
  XEN_SYSCTL_INTERFACE_VERSION: abi.interfaceVersions(4, 17)?.sysctl ?? 0,
  XEN_DOMINF_shutdownshift: abi.DOMINF_SHUTDOWN_SHIFT,
  XEN_X86_EMU_LAPIC: abi.X86_EMU_LAPIC,
  "XEN_DOMCTL_GRANT_version(2)": abi.GRANT_VERSION_2,
  XEN_DOMCTL_SHADOW_OP_OFF: abi.SHADOW_OP.off,
  XEN_DOMCTL_SHADOW_OP_ENABLE_LOGDIRTY: abi.SHADOW_OP.enable_logdirty,
  XEN_DOMCTL_SHADOW_OP_CLEAN: abi.SHADOW_OP.clean,
  XEN_DOMCTL_SHADOW_OP_PEEK: abi.SHADOW_OP.peek,
  XEN_VM_EVENT_ENABLE: abi.VM_EVENT_OP.enable,
  XEN_VM_EVENT_DISABLE: abi.VM_EVENT_OP.disable,
  XEN_VM_EVENT_RESUME: abi.VM_EVENT_OP.resume,
  XEN_VM_EVENT_GET_VERSION: abi.VM_EVENT_OP.get_version,
  XEN_DOMCTL_VM_EVENT_OP_PAGING: abi.VM_EVENT_MODE.paging,
  XEN_DOMCTL_VM_EVENT_OP_MONITOR: abi.VM_EVENT_MODE.monitor,
  XEN_DOMCTL_VM_EVENT_OP_SHARING: abi.VM_EVENT_MODE.sharing,
  "XEN_DOMCTL_PFINFO_XTAB >> 28": abi.PAGE_TYPE.xtab,
  "XEN_DOMCTL_PFINFO_NOTAB >> 28": abi.PAGE_TYPE.none,
  "sizeof(xen_extraversion_t)": abi.EXTRAVERSION_BYTES,
  "sizeof(xen_capabilities_info_t)": abi.CAPABILITIES_BYTES,
  "sizeof(struct vcpu_guest_context)": abi.VCPU_GUEST_CONTEXT_BYTES,
  "offsetof(struct vcpu_guest_context, flags)": abi.VCPU_GUEST_CONTEXT.flags,
  "offsetof(struct vcpu_guest_context, user_regs.rax)": abi.VCPU_GUEST_CONTEXT.rax,
  "offsetof(struct vcpu_guest_context, user_regs.rip)": abi.VCPU_GUEST_CONTEXT.rip,
  "offsetof(struct vcpu_guest_context, user_regs.rsp)": abi.VCPU_GUEST_CONTEXT.rsp,
  "offsetof(struct vcpu_guest_context, ctrlreg)": abi.VCPU_GUEST_CONTEXT.ctrlreg,
  ...Object.fromEntries(
    Object.entries(abi.HVM_SAVE).map(([name, code]) => [
      // Records of varying length have a number but no type.
      name === "CPU_XSAVE" || name === "CPU_MSR" ? `${name}_CODE` : `HVM_SAVE_CODE(${name})`,
      code,
    ]),
  ),
  GNTTAB_RESERVED_CONSOLE: abi.GNTTAB_RESERVED.console,
  GNTTAB_RESERVED_XENSTORE: abi.GNTTAB_RESERVED.xenstore,
  HVM_FILE_MAGIC: abi.HVM_FILE_MAGIC,
  HVMMEM_ram_rw: abi.HVMMEM_RAM_RW,
  VM_EVENT_INTERFACE_VERSION: abi.VM_EVENT_INTERFACE_VERSION,
  VM_EVENT_FLAG_VCPU_PAUSED: abi.VM_EVENT_FLAG.vcpu_paused,
  VM_EVENT_FLAG_FOREIGN: abi.VM_EVENT_FLAG.foreign,
  VM_EVENT_REASON_MEM_ACCESS: abi.VM_EVENT_REASON.mem_access,
  VM_EVENT_REASON_MEM_SHARING: abi.VM_EVENT_REASON.mem_sharing,
  VM_EVENT_REASON_MEM_PAGING: abi.VM_EVENT_REASON.mem_paging,
  MEM_PAGING_DROP_PAGE: abi.MEM_PAGING.drop_page,
  MEM_PAGING_EVICT_FAIL: abi.MEM_PAGING.evict_fail,
  "__RING_SIZE((struct vm_event_sring *)0, 4096)": abi.RING_ENTRIES,
  "offsetof(struct vm_event_sring, ring)": abi.RING_HEADER_BYTES,
  "sizeof(union vm_event_sring_entry)": abi.VmEvent.size,
  XENSTORE_PAYLOAD_MAX: abi.XENSTORE_PAYLOAD_MAX,
  XENSTORE_ABS_PATH_MAX: abi.XENSTORE_ABS_PATH_MAX,
  XENSTORE_REL_PATH_MAX: abi.XENSTORE_REL_PATH_MAX,
  IOCTL_PRIVCMD_HYPERCALL: abi.PRIVCMD.HYPERCALL,
  IOCTL_PRIVCMD_MMAPBATCH_V2: abi.PRIVCMD.MMAPBATCH_V2,
  IOCTL_PRIVCMD_DM_OP: abi.PRIVCMD.DM_OP,
  IOCTL_PRIVCMD_MMAP_RESOURCE: abi.PRIVCMD.MMAP_RESOURCE,
  IOCTL_EVTCHN_BIND_INTERDOMAIN: abi.EVTCHN.BIND_INTERDOMAIN,
  IOCTL_EVTCHN_BIND_UNBOUND_PORT: abi.EVTCHN.BIND_UNBOUND_PORT,
  IOCTL_EVTCHN_UNBIND: abi.EVTCHN.UNBIND,
  IOCTL_EVTCHN_NOTIFY: abi.EVTCHN.NOTIFY,
  IOCTL_EVTCHN_RESET: abi.EVTCHN.RESET,
  "sizeof(struct ioctl_evtchn_notify)": abi.IoctlEvtchnPort.size,
  IOCTL_GNTDEV_MAP_GRANT_REF: abi.GNTDEV.MAP_GRANT_REF,
  IOCTL_GNTDEV_UNMAP_GRANT_REF: abi.GNTDEV.UNMAP_GRANT_REF,
  IOCTL_GNTDEV_GRANT_COPY: abi.GNTDEV.GRANT_COPY,
  "offsetof(struct ioctl_gntdev_map_grant_ref, refs)": abi.GntdevMapHead.size,
  GNTCOPY_source_gref: abi.GNTCOPY.source_gref,
  GNTCOPY_dest_gref: abi.GNTCOPY.dest_gref,
};

const PRELUDE = `
#define __XEN_TOOLS__ 1
#include <stdint.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <xen/xen.h>
#include <xen/domctl.h>
#include <xen/sysctl.h>
#include <xen/memory.h>
#include <xen/sched.h>
#include <xen/version.h>
#include <xen/event_channel.h>
#include <xen/grant_table.h>
#include <xen/hvm/hvm_op.h>
#include <xen/hvm/params.h>
#include <xen/hvm/save.h>
#include <xen/hvm/dm_op.h>
#include <xen/vm_event.h>
#include <xen/io/xs_wire.h>
#include <xen/io/console.h>
#include <xen/sys/privcmd.h>
#include <xen/sys/evtchn.h>
#include <xen/sys/gntdev.h>
#define xen_wmb()
#define xen_mb()
#define xen_rmb()
`;

/** The value of each C expression, in the compiler's eyes. */
async function evaluate(expressions: readonly string[]): Promise<Map<string, number>> {
  const directory = await Deno.makeTempDir({ prefix: "abi-" });
  try {
    const lines = expressions.map((expression, index) => `  printf("${index} %lld\\n", (long long)(${expression}));`);
    await Deno.writeTextFile(`${directory}/abi.c`, `${PRELUDE}int main(void) {\n${lines.join("\n")}\n  return 0;\n}\n`);
    const args = ["-std=gnu11", "-O0", "-o", `${directory}/abi`, `${directory}/abi.c`];
    const compiled = await run("gcc", args);
    if (!compiled.success) {
      throw new Error(`gcc cannot compile against Xen's headers (package libxen-dev):\n${compiled.stderr}`);
    }
    const { stdout } = await run(`${directory}/abi`, []);
    const values = new Map<string, number>();
    for (const line of stdout.trim().split("\n")) {
      const [index, value] = line.split(" ");
      values.set(expressions[Number(index)] ?? "", Number(value));
    }
    return values;
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
}

async function run(command: string, args: string[]) {
  const { success, stdout, stderr } = await new Deno.Command(command, { args }).output();
  const decoder = new TextDecoder();
  return { success, stdout: decoder.decode(stdout), stderr: decoder.decode(stderr) };
}

Deno.test("structs have the offsets and sizes of Xen's headers", async () => {
  const ours: Record<string, number> = {};
  for (const { struct, c = `struct ${struct.name}`, members = {}, sizeDiffers } of STRUCTS) {
    if (!sizeDiffers) ours[`sizeof(${c})`] = struct.size;
    for (const [field, offset] of Object.entries(struct.offsets)) {
      ours[`offsetof(${c}, ${members[field] ?? field})`] = offset;
    }
  }
  const theirs = await evaluate(Object.keys(ours));
  deepEqual(ours, Object.fromEntries(theirs));
});

Deno.test("numbers are those of Xen's headers", async () => {
  const ours: Record<string, number> = { ...NUMBERS };
  for (const [prefix, table] of TABLES) {
    for (const [name, number] of Object.entries(table)) ours[prefix + name] = number;
  }
  const theirs = await evaluate(Object.keys(ours));
  deepEqual(ours, Object.fromEntries(theirs));
});

Deno.test("every struct of the ABI is compared with something", () => {
  const compared = new Set<unknown>([...STRUCTS.map(({ struct }) => struct), abi.CreateDomain17, abi.HvmHwLapic20]);
  // Not in the headers: the argument is a plain domid_t.
  compared.add(abi.MaximumGpfn);
  const missing = Object.entries(abi)
    .filter(([, value]) => typeof value === "object" && Reflect.get(value, "kind") === "struct" && !compared.has(value))
    .map(([name]) => name);
  deepEqual(missing, []);
});

Deno.test("createdomain of Xen 4.19 and later: pahole of stable-4.20 and stable-4.21", () => {
  deepEqual(abi.CreateDomain17.offsets, {
    ssidref: 0,
    handle: 4,
    flags: 20,
    iommu_opts: 24,
    max_vcpus: 28,
    max_evtchn_port: 32,
    max_grant_frames: 36,
    max_maptrack_frames: 40,
    grant_opts: 44,
    altp2m_opts: 48,
    vmtrace_size: 52,
    cpupool_id: 56,
    arch: 60,
  });
  equal(abi.CreateDomain17.size, 68);
  equal(abi.createDomainLayout(0x15), abi.CreateDomain15);
  equal(abi.createDomainLayout(0x16), abi.CreateDomain15);
  equal(abi.createDomainLayout(0x17), abi.CreateDomain17);
  equal(abi.createDomainLayout(0x18), abi.CreateDomain17);
});

Deno.test("the local APIC's record of Xen 4.20: pahole of stable-4.20", () => {
  equal(abi.HvmHwLapic20.offsets.pending_esr, 24);
  equal(abi.HvmHwLapic20.size, 32);
  equal(abi.HvmHwLapic17.size, 24);
});

Deno.test("interface versions by release", () => {
  const table = abi.KNOWN_RELEASES.map((release) => {
    const [major = 0, minor = 0] = release.split(".").map(Number);
    const versions = abi.interfaceVersions(major, minor);
    return [release, versions?.domctl, versions?.sysctl];
  });
  deepEqual(table, [
    ["4.17", 0x15, 0x15],
    ["4.18", 0x16, 0x15],
    ["4.19", 0x17, 0x15],
    ["4.20", 0x17, 0x15],
    ["4.21", 0x17, 0x16],
    ["4.22", 0x18, 0x16],
  ]);
  equal(abi.interfaceVersions(4, 16), undefined);
});
