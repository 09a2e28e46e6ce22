/** The xenstore protocol (public/io/xs_wire.h) and the shared pages of xenstore and console (public/io/console.h). */
import { bytes, struct } from "../struct.ts";

/** `XS_*`. */
export const XS = {
  CONTROL: 0,
  DIRECTORY: 1,
  READ: 2,
  GET_PERMS: 3,
  WATCH: 4,
  UNWATCH: 5,
  TRANSACTION_START: 6,
  TRANSACTION_END: 7,
  INTRODUCE: 8,
  RELEASE: 9,
  GET_DOMAIN_PATH: 10,
  WRITE: 11,
  MKDIR: 12,
  RM: 13,
  SET_PERMS: 14,
  WATCH_EVENT: 15,
  ERROR: 16,
  IS_DOMAIN_INTRODUCED: 17,
  RESUME: 18,
  DIRECTORY_PART: 22,
} as const;

/** Before each message's payload. */
export const XsdSockmsg = struct("xsd_sockmsg", { type: "u32", req_id: "u32", tx_id: "u32", len: "u32" });

export const XENSTORE_PAYLOAD_MAX = 4096;
export const XENSTORE_ABS_PATH_MAX = 3072;
export const XENSTORE_REL_PATH_MAX = 2048;

/** A zeroed page is its initial state. */
export const XenstoreInterface = struct("xenstore_domain_interface", {
  req: bytes(1024),
  rsp: bytes(1024),
  req_cons: "u32",
  req_prod: "u32",
  rsp_cons: "u32",
  rsp_prod: "u32",
  server_features: "u32",
  connection: "u32",
  error: "u32",
});

/** `in` and `out` are seen from the guest. A zeroed page is its initial state. */
export const ConsoleInterface = struct("xencons_interface", {
  in: bytes(1024),
  out: bytes(2048),
  in_cons: "u32",
  in_prod: "u32",
  out_cons: "u32",
  out_prod: "u32",
});
