/** The fork calls of guests: the service in dom0, and the library for programs inside guests. */
export { GuestService, type GuestServiceOptions } from "./service.ts";
export type { SessionLimits } from "./session.ts";
export { type Clock, type GuestStore, SYSTEM_CLOCK } from "./ports.ts";
export {
  type CloneIdentity,
  domainPath,
  identityNodes,
  KERNEL_SYMBOLS,
  type KernelSymbol,
  NODES,
  parseSymbols,
} from "./nodes.ts";
export { joinLine, printable } from "./protocol.ts";
