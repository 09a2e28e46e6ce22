/** The vm_event ring (public/vm_event.h, public/io/ring.h): Xen produces requests, this program answers them. */
import { bytes, struct } from "../struct.ts";

export const VM_EVENT_INTERFACE_VERSION = 7;

/** The shared page's head; entries follow at {@link RING_HEADER_BYTES}. */
export const RingHeader = struct("vm_event_sring", {
  req_prod: "u32",
  req_event: "u32",
  rsp_prod: "u32",
  rsp_event: "u32",
});
export const RING_HEADER_BYTES = 64;

/** One entry. `gfn`, `p2mt` and `paging_flags` are `u.mem_paging`; the rest of the entry is not used for paging. */
export const VmEvent = struct("vm_event_st", {
  version: "u32",
  flags: "u32",
  reason: "u32",
  vcpu_id: "u32",
  altp2m_idx: "u16",
  _pad: bytes(6),
  gfn: "u64",
  p2mt: "u32",
  paging_flags: "u32",
  rest: bytes(360, 8),
});

/** The largest power of two of entries that fits one page behind the header (`__RING_SIZE`). */
export const RING_ENTRIES = 8;

/** `VM_EVENT_FLAG_*`. */
export const VM_EVENT_FLAG = { vcpu_paused: 1, foreign: 2 } as const;
/** `VM_EVENT_REASON_*`. */
export const VM_EVENT_REASON = { mem_access: 1, mem_sharing: 2, mem_paging: 3 } as const;
/** `MEM_PAGING_*`. */
export const MEM_PAGING = { drop_page: 1, evict_fail: 2 } as const;
/** `p2m_type_t` of Xen 4.17 (arch/x86/include/asm/p2m.h), as far as a paging request shows it. */
export const P2M = { ram_paging_out: 9, ram_paged: 10, ram_paging_in: 11 } as const;
