/** System calls for the ports of `hypercall/`. Imported by main.ts and worker entry files only: it needs FFI. */
export { openMachine } from "./machine.ts";
