/** Xen's and Linux's binary interfaces. Every struct, number and flag is declared here, once. */
export * from "./domctl.ts";
export * from "./hvm.ts";
export * from "./hypercall.ts";
export * from "./ioctl.ts";
export * from "./memory.ts";
export * from "./sysctl.ts";
export * from "./versions.ts";
export * from "./vm_event.ts";
export * from "./xenstore.ts";
