/** XENMEM_* of memory_op (public/memory.h), and grant entries (public/grant_table.h). */
import { struct } from "../struct.ts";

/** `XENMEM_*`. */
export const XENMEM = {
  decrease_reservation: 1,
  populate_physmap: 6,
  add_to_physmap: 7,
  maximum_gpfn: 14,
  remove_from_physmap: 15,
  paging_op: 20,
  acquire_resource: 28,
} as const;

/** `extent_start`: gfns. The hypercall returns how many extents were done, which may be fewer than asked. */
export const MemoryReservation = struct("xen_memory_reservation", {
  extent_start: "u64",
  nr_extents: "u64",
  extent_order: "u32",
  mem_flags: "u32",
  domid: "u16",
});

/** The argument of maximum_gpfn: just a domid. */
export const MaximumGpfn = struct("domid", { domid: "u16" });

export const AddToPhysmap = struct("xen_add_to_physmap", {
  domid: "u16",
  size: "u16",
  space: "u32",
  idx: "u64",
  gpfn: "u64",
});
/** `XENMAPSPACE_*`. */
export const XENMAPSPACE = { shared_info: 0, grant_table: 1 } as const;
export const RemoveFromPhysmap = struct("xen_remove_from_physmap", { domid: "u16", gpfn: "u64" });

export const MemPagingOp = struct("xen_mem_paging_op", { op: "u8", domain: "u16", buffer: "u64", gfn: "u64" });
/** `XENMEM_paging_op_*`. */
export const PAGING_OP = { nominate: 0, evict: 1, prep: 2 } as const;

export const AcquireResource = struct("xen_mem_acquire_resource", {
  domid: "u16",
  type: "u16",
  id: "u32",
  nr_frames: "u32",
  pad: "u32",
  frame: "u64",
  frame_list: "u64",
});
/** `XENMEM_resource_*`, and the grant table's ids. */
export const RESOURCE = { ioreq_server: 0, grant_table: 1 } as const;
export const RESOURCE_GRANT_TABLE = { shared: 0, status: 1 } as const;

/** An entry of the grant table, version 1. Write `domid` and `frame` first, `flags` last. */
export const GrantEntryV1 = struct("grant_entry_v1", { flags: "u16", domid: "u16", frame: "u32" });
/** `GTF_*`. */
export const GTF = { permit_access: 1, readonly: 4, reading: 8, writing: 16 } as const;
/** `GNTST_*`, the ones told apart here. */
export const GNTST = { okay: 0, general_error: -1, bad_domain: -2, bad_gntref: -3, eagain: -12 } as const;
/** Grant references that the toolstack seeds (`GNTTAB_RESERVED_*`). */
export const GNTTAB_RESERVED = { console: 0, xenstore: 1 } as const;
