/** Linux's Xen devices: ioctl numbers and arguments (include/uapi/xen/privcmd.h, evtchn.h, gntdev.h). */
import { array, bytes, struct } from "../struct.ts";

/** `/dev/xen/privcmd`. */
export const PRIVCMD = {
  HYPERCALL: 0x00305000,
  MMAPBATCH_V2: 0x00205004,
  DM_OP: 0x00105005,
  MMAP_RESOURCE: 0x00205007,
} as const;

export const PrivcmdHypercall = struct("privcmd_hypercall", { op: "u64", arg: array("u64", 5) });
/** `arr`: u64 gfns; `err`: i32 each, written. */
export const PrivcmdMmapBatchV2 = struct("privcmd_mmapbatch_v2", {
  num: "u32",
  dom: "u16",
  addr: "u64",
  arr: "u64",
  err: "u64",
});
export const PrivcmdDmOp = struct("privcmd_dm_op", { dom: "u16", num: "u16", ubufs: "u64" });
export const PrivcmdDmOpBuf = struct("privcmd_dm_op_buf", { uptr: "u64", size: "u64" });
export const PrivcmdMmapResource = struct("privcmd_mmap_resource", {
  dom: "u16",
  type: "u32",
  id: "u32",
  idx: "u32",
  num: "u64",
  addr: "u64",
});

/** `/dev/xen/evtchn`. Reading gives u32 ports, each masked until it is written back. */
export const EVTCHN = {
  BIND_INTERDOMAIN: 0x00084501,
  BIND_UNBOUND_PORT: 0x00044502,
  UNBIND: 0x00044503,
  NOTIFY: 0x00044504,
  RESET: 0x00004505,
} as const;
export const IoctlEvtchnBindInterdomain = struct("ioctl_evtchn_bind_interdomain", {
  remote_domain: "u32",
  remote_port: "u32",
});
export const IoctlEvtchnBindUnboundPort = struct("ioctl_evtchn_bind_unbound_port", { remote_domain: "u32" });
/** Of UNBIND and NOTIFY alike. */
export const IoctlEvtchnPort = struct("ioctl_evtchn_unbind", { port: "u32" });

/** `/dev/xen/gntdev`. */
export const GNTDEV = {
  MAP_GRANT_REF: 0x00184700,
  UNMAP_GRANT_REF: 0x00104701,
  GRANT_COPY: 0x00104708,
} as const;
/** Followed by `count` {@link GntdevGrantRef}. `index` is written: the offset to mmap. */
export const GntdevMapHead = struct("ioctl_gntdev_map_grant_ref_head", { count: "u32", pad: "u32", index: "u64" });
export const GntdevGrantRef = struct("ioctl_gntdev_grant_ref", { domid: "u32", ref: "u32" });
export const GntdevUnmap = struct("ioctl_gntdev_unmap_grant_ref", { index: "u64", count: "u32", pad: "u32" });
export const GntdevGrantCopy = struct("ioctl_gntdev_grant_copy", { count: "u32", segments: "u64" });
/** `source` and `dest` are a {@link GntdevForeignEnd} or a u64 address, as `flags` says. `status` is written. */
export const GntdevCopySegment = struct("gntdev_grant_copy_segment", {
  source: bytes(8, 8),
  dest: bytes(8, 8),
  len: "u16",
  flags: "u16",
  status: "i16",
});
export const GntdevForeignEnd = struct("gntdev_grant_copy_foreign", { ref: "u32", offset: "u16", domid: "u16" });
/** `GNTCOPY_*`. */
export const GNTCOPY = { source_gref: 1, dest_gref: 2 } as const;
