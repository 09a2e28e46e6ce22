/** A simulated Xen host: below the codecs, on the same bytes as the real one. See README.md. */
export type { Domain } from "./domain.ts";
export { HostCrash, ProcessKilled } from "./errno.ts";
export { type Fate, Faults, type Step } from "./faults.ts";
export type { BootOptions, RamRange } from "./guest/boot.ts";
export { LAYOUT } from "./guest/boot.ts";
export { drive, driveAsync } from "./guest/drive.ts";
export { GuestStore, refusalOf, StoreRefusal } from "./guest/guest_store.ts";
export { fillStore, floodRequests, sendOversized, writeGarbage } from "./guest/hostile.ts";
export { inspectPage, type PatternPage, patternPage } from "./guest/pattern.ts";
export { type GuestOptions, type Program, SimGuest, type StepResult, type SuspendManners } from "./guest/sim_guest.ts";
export { openSimMachine, type SimMachine } from "./machine.ts";
export { defaultCpuPolicy, SimXen, type SimXenOptions } from "./sim_xen.ts";
export { SimXenstore } from "./xenstore/server.ts";
