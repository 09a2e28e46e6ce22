/** Hypercall numbers and the argument list of a multicall (public/xen.h). Field names are the headers' own throughout `abi/`. */
import { array, struct } from "../struct.ts";

/** `__HYPERVISOR_*`. */
export const HYPERCALL = {
  memory_op: 12,
  multicall: 13,
  xen_version: 17,
  grant_table_op: 20,
  vcpu_op: 24,
  sched_op: 29,
  event_channel_op: 32,
  hvm_op: 34,
  sysctl: 35,
  domctl: 36,
  dm_op: 41,
} as const;

/** `XENVER_*` of xen_version (public/version.h). */
export const XENVER = { version: 0, extraversion: 1, capabilities: 3, changeset: 4, commandline: 9 } as const;
export const EXTRAVERSION_BYTES = 16;
export const CAPABILITIES_BYTES = 1024;

/** Domain numbers from here on are not domains (`DOMID_FIRST_RESERVED`); the first is DOMID_SELF. */
export const DOMID_FIRST_RESERVED = 0x7ff0;

/** `result` is signed: a count or -errno, written by Xen. */
export const MulticallEntry = struct("multicall_entry", { op: "u64", result: "i64", args: array("u64", 6) });

/** `SCHEDOP_*` and `SHUTDOWN_*` (public/sched.h). */
export const SCHEDOP = { shutdown: 2, poll: 3, remote_shutdown: 4 } as const;
export const SHUTDOWN = { poweroff: 0, reboot: 1, suspend: 2, crash: 3, watchdog: 4, soft_reset: 5 } as const;

export const SchedRemoteShutdown = struct("sched_remote_shutdown", { domain_id: "u16", reason: "u32" });

/** `EVTCHNOP_*` (public/event_channel.h). */
export const EVTCHNOP = {
  bind_interdomain: 0,
  close: 3,
  send: 4,
  status: 5,
  alloc_unbound: 6,
  unmask: 9,
  reset: 10,
} as const;

export const EvtchnAllocUnbound = struct("evtchn_alloc_unbound", { dom: "u16", remote_dom: "u16", port: "u32" });
export const EvtchnBindInterdomain = struct("evtchn_bind_interdomain", {
  remote_dom: "u16",
  remote_port: "u32",
  local_port: "u32",
});
export const EvtchnClose = struct("evtchn_close", { port: "u32" });
export const EvtchnSend = struct("evtchn_send", { port: "u32" });
/** `u_dom` and `u_port` are `u.interdomain.dom` and `.port`, meant when `status` is 2 (`EVTCHNSTAT_interdomain`). */
export const EvtchnStatus = struct("evtchn_status", {
  dom: "u16",
  port: "u32",
  status: "u32",
  vcpu: "u32",
  u_dom: "u16",
  u_port: "u32",
});
