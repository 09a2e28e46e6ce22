/** The typed face of Xen, over {@link HypercallPort}. `xen.ts` implements it; every method throws a {@link XenError}. */
import type { Address, Domid, Gfn, Port } from "./ports.ts";

export interface CreateDomain {
  readonly vcpus: number;
  /** A UUID's 16 bytes. */
  readonly handle: Uint8Array;
  readonly maxEventChannelPort?: number;
}

export interface DomainInfo {
  readonly domid: Domid;
  readonly dying: boolean;
  readonly hvm: boolean;
  readonly hap: boolean;
  readonly paused: boolean;
  readonly blocked: boolean;
  readonly running: boolean;
  readonly shutdown: boolean;
  /** SHUTDOWN_* of public/sched.h: 0 poweroff, 1 reboot, 2 suspend, 3 crash. */
  readonly shutdownReason: number;
  readonly totalPages: bigint;
  readonly maxPages: bigint;
  readonly pagedPages: bigint;
  /** The gfn where the guest mapped its shared_info; all ones where it did not. */
  readonly sharedInfoGfn: Gfn;
  readonly cpuTimeNs: bigint;
  readonly onlineVcpus: number;
  readonly maxVcpuId: number;
  readonly handle: Uint8Array;
}

/** CPUID leaves (24 bytes each) and MSRs (16 bytes each), as Xen gave them. */
export interface CpuPolicy {
  readonly leaves: Uint8Array;
  readonly msrs: Uint8Array;
}

export interface TscInfo {
  readonly mode: number;
  readonly khz: number;
  readonly incarnation: number;
  readonly elapsedNs: bigint;
}

export interface PhysicalInfo {
  readonly hvm: boolean;
  readonly hap: boolean;
  readonly cpus: number;
  readonly cpuKhz: number;
  readonly totalPages: bigint;
  readonly freePages: bigint;
}

export interface Xen {
  /** Hypervisor version, such as 4 and 17. */
  readonly version: { readonly major: number; readonly minor: number; readonly extra: string };
  capabilities(): string;
  physicalInfo(): PhysicalInfo;
  /** Policy by XEN_SYSCTL_cpu_policy_* index: 3 hvm_max, 5 hvm_default. */
  systemCpuPolicy(index: number): CpuPolicy;

  createDomain(options: CreateDomain): Domid;
  destroyDomain(domid: Domid): void;
  pauseDomain(domid: Domid): void;
  unpauseDomain(domid: Domid): void;
  resumeDomain(domid: Domid): void;
  /** SCHEDOP_remote_shutdown. */
  shutdownDomain(domid: Domid, reason: number): void;
  domainInfo(domid: Domid): DomainInfo | undefined;
  listDomains(): DomainInfo[];
  setMaxVcpus(domid: Domid, vcpus: number): void;
  setMaxMemory(domid: Domid, kib: bigint): void;
  setPagingMempool(domid: Domid, byteLength: bigint): void;

  vcpuContext(domid: Domid, vcpu: number): Uint8Array;
  setVcpuContext(domid: Domid, vcpu: number, context: Uint8Array): void;
  hvmContext(domid: Domid): Uint8Array;
  setHvmContext(domid: Domid, context: Uint8Array): void;
  cpuPolicy(domid: Domid): CpuPolicy;
  setCpuPolicy(domid: Domid, policy: CpuPolicy): void;
  tscInfo(domid: Domid): TscInfo;
  setTscInfo(domid: Domid, info: TscInfo): void;
  hvmParam(domid: Domid, index: number): bigint;
  setHvmParam(domid: Domid, index: number, value: bigint): void;

  /** Port in `domid` that `remote` may bind. */
  allocateUnbound(domid: Domid, remote: Domid): Port;
  /** XEN_DOMCTL_subscribe: `port` (of the domain's own table) fires when it suspends, instead of the announcement to xenstored. */
  subscribeSuspend(domid: Domid, port: Port): void;

  /** Highest gfn the domain ever had. */
  maximumGfn(domid: Domid): Gfn;
  /** XEN_DOMCTL_getpageframeinfo3, in batches of 1024: bits 28-31 of the type; 0xf is no page (hole, paged, Xen's own). */
  pageTypes(domid: Domid, gfns: BigUint64Array): Uint8Array;
  /** Throws unless every extent was made. */
  populate(domid: Domid, gfns: BigUint64Array, order: number): void;
  /** Throws unless every page was given back. */
  decreaseReservation(domid: Domid, gfns: BigUint64Array): void;

  logDirtyEnable(domid: Domid): void;
  logDirtyOff(domid: Domid): void;
  /** One bit a gfn, from gfn 0, little-endian in a byte; not cleared. */
  logDirtyPeek(domid: Domid, pages: bigint): Uint8Array;

  /** XEN_DOMCTL_VM_EVENT_OP_PAGING enable: the port in `domid` to bind. */
  pagingEnable(domid: Domid): Port;
  pagingDisable(domid: Domid): void;
  /** Each gfn through one multicall a batch: per gfn 0 or -errno. */
  nominate(domid: Domid, gfns: BigUint64Array): Int32Array;
  /** Nominate and evict each: per gfn 0 or the first -errno. */
  pageOut(domid: Domid, gfns: BigUint64Array): Int32Array;
  /** Brings one page in. `buffer` is the address of 4096 bytes in pinned or foreign-mapped memory, or 0 for a page that is only nominated. 0 or -errno (-2: it is in already). */
  prep(domid: Domid, gfn: Gfn, buffer: Address | 0n): number;
  /** The same for many, by multicall. */
  prepMany(domid: Domid, gfns: BigUint64Array, buffers: BigUint64Array): Int32Array;
  /** XEN_DMOP_set_mem_type; 0 is HVMMEM_ram_rw. 0 or -errno: on a nominated page -EAGAIN, and its request comes by the ring. */
  setMemoryType(domid: Domid, type: number, first: Gfn, pages: number): number;
}
