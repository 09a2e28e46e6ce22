/** The block interface's structs (Xen's public/io/blkif.h and ring.h), as an x86-64 guest lays them out. */
import { array, bytes, struct } from "../../hypercall/struct.ts";

export const OP_READ = 0;
export const OP_WRITE = 1;
export const OP_WRITE_BARRIER = 2;
export const OP_FLUSH_DISKCACHE = 3;
export const OP_DISCARD = 5;
export const OP_INDIRECT = 6;

export const RSP_OKAY = 0;
export const RSP_ERROR = -1;
export const RSP_EOPNOTSUPP = -2;
export type ResponseStatus = typeof RSP_OKAY | typeof RSP_ERROR | typeof RSP_EOPNOTSUPP;

export const MAX_DIRECT_SEGMENTS = 11;
/** What this back end advertises as feature-max-indirect-segments: 1 MiB a request, described by one page. */
export const MAX_INDIRECT_SEGMENTS = 256;

/** Sectors are of 512 bytes on the ring, whatever the disk says. Both ends are included. */
export const Segment = struct("blkif_request_segment", { gref: "u32", first_sect: "u8", last_sect: "u8" });

export const Request = struct("blkif_request", {
  operation: "u8",
  nr_segments: "u8",
  handle: "u16",
  id: "u64",
  sector_number: "u64",
  seg: array(Segment, MAX_DIRECT_SEGMENTS),
});

export const DiscardRequest = struct("blkif_request_discard", {
  operation: "u8",
  flag: "u8",
  handle: "u16",
  id: "u64",
  sector_number: "u64",
  nr_sectors: "u64",
});

export const IndirectRequest = struct("blkif_request_indirect", {
  operation: "u8",
  indirect_op: "u8",
  nr_segments: "u16",
  id: "u64",
  sector_number: "u64",
  handle: "u16",
  indirect_grefs: array("u32", 8),
});

export const Response = struct("blkif_response", { id: "u64", operation: "u8", status: "i16" });

/** The ring's page: the indices, then 32 slots, each as large as the larger of request and response. */
export const SharedRing = struct("blkif_sring", {
  req_prod: "u32",
  req_event: "u32",
  rsp_prod: "u32",
  rsp_event: "u32",
  private: bytes(48),
  ring: bytes(Request.size),
});

export const SLOTS = 32;
export const SLOT_BYTES = Request.size;
