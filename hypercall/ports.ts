/**
 * What the rest of the program needs from the machine below it. `native/` implements these by system calls, `tests/sim/`
 * on bytes of its own. Whatever is held is `Disposable`.
 *
 * Calls return what Xen returned: a result of zero or more, or a negative errno. They never throw for an errno; the typed
 * layer (`xen.ts`) turns one into a {@link XenError} that names the operation and its subject.
 */

/** A domain's number. */
export type Domid = number & { readonly __brand: "Domid" };
/** A guest frame number: guest-physical address >> 12. */
export type Gfn = bigint & { readonly __brand: "Gfn" };
/** An event channel's port, in the table of the domain that the name says. */
export type Port = number & { readonly __brand: "Port" };
/** A virtual address of this process. */
export type Address = bigint & { readonly __brand: "Address" };

export const DOM0 = 0 as Domid;
export const PAGE_BYTES = 4096;

/** Memory that Xen reads and writes while a hypercall runs: zeroed, never swapped, never moved. */
export interface PinnedMemory extends Disposable {
  readonly address: Address;
  readonly bytes: Uint8Array<ArrayBuffer>;
}

/** Hypercalls, and the memory their arguments live in. */
export interface HypercallPort {
  /** Zeroed pinned memory of at least `byteLength` bytes, page aligned. */
  allocate(byteLength: number): PinnedMemory;
  /** Hypercall `op` (public/xen.h). Result, or -errno. */
  call(op: number, ...args: bigint[]): bigint;
  /** XEN_DMOP of one buffer (public/hvm/dm_op.h): 0 or -errno. */
  deviceModelOp(domid: Domid, buffer: Uint8Array): number;
}

/** Frames of another domain, mapped here. */
export interface ForeignMapping extends Disposable {
  readonly address: Address;
  readonly bytes: Uint8Array<ArrayBuffer>;
  /** Per frame 0 or -errno: -ENOENT (-2) a page that is paged out, -EINVAL (-22) no page. A frame with an error must not be touched. */
  readonly errors: Int32Array;
}

export interface ForeignMemoryPort {
  map(domid: Domid, gfns: BigUint64Array, options: { readonly write: boolean }): ForeignMapping;
  /** XENMEM_acquire_resource: type 1 is the grant table (id 0: shared frames). */
  mapResource(domid: Domid, type: number, id: number, firstFrame: number, frames: number): ForeignMapping;
}

/** Event channels of this domain (`/dev/xen/evtchn`). Closing it unbinds all its ports. */
export interface EventChannelPort extends Disposable {
  /** For a {@link Poller}. */
  readonly fd: number;
  /** Binds to a port that `domid` allocated for this domain. Local port. */
  bindInterdomain(domid: Domid, remotePort: Port): Port;
  bindUnbound(domid: Domid): Port;
  unbind(port: Port): void;
  notify(port: Port): void;
  /** Ports that fired since they were unmasked last; each is masked until `unmask`. Does not block. */
  pending(): Port[];
  unmask(port: Port): void;
}

/** One side of a grant copy: local memory, or a part of a granted page. */
export type CopyEnd = { readonly address: Address } | {
  readonly domid: Domid;
  readonly ref: number;
  readonly offset: number;
};

export interface CopySegment {
  readonly source: CopyEnd;
  readonly dest: CopyEnd;
  readonly byteLength: number;
}

/** Grants of other domains (`/dev/xen/gntdev`). */
export interface GrantPort extends Disposable {
  /** Per segment 0 or a negative GNTST_ status (public/grant_table.h). */
  copy(segments: readonly CopySegment[]): Int16Array;
  map(domid: Domid, refs: readonly number[], options: { readonly write: boolean }): PinnedMemory;
}

/** Waits for file descriptors on the calling thread (epoll). */
export interface Poller extends Disposable {
  add(fd: number): void;
  remove(fd: number): void;
  /** Descriptors that are readable, after at most `timeoutMs` (0: at once, -1: no limit). Blocks the thread. */
  wait(timeoutMs: number): number[];
}

/** An eventfd: one thread wakes another out of its {@link Poller}. */
export interface Wakeup extends Disposable {
  readonly fd: number;
  signal(): void;
  /** Takes the signals back. */
  drain(): void;
}

/** Everything of the machine, for whoever builds services. */
export interface Machine extends Disposable {
  readonly hypercalls: HypercallPort;
  readonly foreignMemory: ForeignMemoryPort;
  openEventChannels(): EventChannelPort;
  openGrants(): GrantPort;
  openPoller(): Poller;
  openWakeup(): Wakeup;
  /** The same eventfd, from another thread of the process. */
  wakeupOf(fd: number): Wakeup;
}
