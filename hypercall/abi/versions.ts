/** Which interface versions each Xen release speaks (public/domctl.h, sysctl.h). A wrong one gets EACCES. */

export type DomctlInterface = 0x15 | 0x16 | 0x17 | 0x18;
export type SysctlInterface = 0x15 | 0x16;

export interface InterfaceVersions {
  readonly domctl: DomctlInterface;
  readonly sysctl: SysctlInterface;
}

const RELEASES: ReadonlyMap<string, InterfaceVersions> = new Map([
  ["4.17", { domctl: 0x15, sysctl: 0x15 }],
  ["4.18", { domctl: 0x16, sysctl: 0x15 }],
  ["4.19", { domctl: 0x17, sysctl: 0x15 }],
  ["4.20", { domctl: 0x17, sysctl: 0x15 }],
  ["4.21", { domctl: 0x17, sysctl: 0x16 }],
  ["4.22", { domctl: 0x18, sysctl: 0x16 }],
]);

/** The interfaces of a release, or undefined for one whose layouts are not known here. */
export function interfaceVersions(major: number, minor: number): InterfaceVersions | undefined {
  return RELEASES.get(`${major}.${minor}`);
}

export const KNOWN_RELEASES: readonly string[] = [...RELEASES.keys()];
