/** A simulated Xen host: below the codecs, on the same bytes as the real one. See README.md. */
export { HostCrash, ProcessKilled } from "./errno.ts";
export { type Fate, Faults, type Step } from "./faults.ts";
export { openSimMachine, SimMachine } from "./machine.ts";
export { defaultCpuPolicy, SimXen, type SimXenOptions } from "./sim_xen.ts";
export { Domain } from "./domain.ts";
