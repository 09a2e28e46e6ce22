/** The lab: real Xen hosts in QEMU for tests, the demo and people. See README.md. */
export { CommandError, type CommandOptions, type CommandResult } from "./command.ts";
export { Guest, guestConfig, type GuestOptions, newToken, type Selfcheck, type ShellAnswer } from "./guest.ts";
export { Host } from "./host.ts";
export { Lab, type LabOptions } from "./lab.ts";
export type { Forward } from "./ssh.ts";
