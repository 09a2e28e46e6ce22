/** A domain: its life, its vCPUs, and its accesses to memory (common/domain.c, arch/x86/hvm/hvm.c). */
import { DOMINF, DOMINF_SHUTDOWN_SHIFT, GetDomainInfo, HVM_PARAM, SHUTDOWN } from "../../hypercall/abi/mod.ts";
import { PAGE_BYTES } from "../../hypercall/ports.ts";
import { DomainMemory } from "./domain_memory.ts";
import { no } from "./errno.ts";
import type { EventChannels } from "./event_channels.ts";
import type { Frame, HostMemory } from "./frames.ts";
import { GrantTable } from "./grant_table.ts";
import { Paging } from "./paging.ts";
import { Vcpu } from "./vcpu.ts";

export const NO_GFN = (1n << 64n) - 1n;

export interface DomainConfig {
  readonly domid: number;
  readonly handle: Uint8Array;
  readonly vcpus: number;
  readonly maxPort: number;
  readonly maxGrantFrames: number;
  readonly emulationFlags: number;
  readonly flags: number;
}

/** What a domain needs of the hypervisor around it. */
export interface DomainHost {
  readonly memory: HostMemory;
  readonly eventChannels: EventChannels;
  /** VIRQ_DOM_EXC: a domain shut down or died. */
  domainException(): void;
  /** The last frame of a dead domain is free: its number is, too. */
  forget(domain: Domain): void;
}

export interface TscInfo {
  readonly mode: number;
  readonly khz: number;
  readonly incarnation: number;
  readonly elapsedNs: bigint;
}

/** How an access ended: with a page, with no page there (reads give ones, writes go nowhere), or not yet. */
export type Access = { readonly frame: Frame } | "nothing" | "wait";

export class Domain {
  readonly config: DomainConfig;
  readonly memory: DomainMemory;
  readonly paging: Paging;
  readonly grants: GrantTable;
  vcpus: readonly Vcpu[] = [];
  readonly params = new Map<number, bigint>();
  /** The toolstack's pauses. A new domain has one. */
  pauses = 1;
  creationFinished = false;
  shutdownCode: number | undefined;
  dying = false;
  suspendPort = 0;
  sharedInfoGfn = NO_GFN;
  sharedInfo: Frame | undefined;
  tsc: TscInfo = { mode: 0, khz: 2_400_000, incarnation: 0, elapsedNs: 0n };
  leaves: Uint8Array;
  msrs: Uint8Array;
  readonly #host: DomainHost;

  constructor(host: DomainHost, config: DomainConfig, policy: { leaves: Uint8Array; msrs: Uint8Array }) {
    this.#host = host;
    this.config = config;
    this.leaves = policy.leaves.slice();
    this.msrs = policy.msrs.slice();
    this.memory = new DomainMemory(host.memory, () => {
      if (this.dying) host.forget(this);
    });
    this.paging = new Paging(this.memory, {
      vcpus: () => this.vcpus,
      notify: (port) => host.eventChannels.sendFromXen(this.domid, port),
      crash: () => this.shutdown(SHUTDOWN.crash),
    });
    this.grants = new GrantTable(this.memory, this.paging, config.maxGrantFrames);
  }

  get domid(): number {
    return this.config.domid;
  }

  param(name: keyof typeof HVM_PARAM): bigint {
    return this.params.get(HVM_PARAM[name]) ?? 0n;
  }

  /** XEN_DOMCTL_max_vcpus. 0 or -errno. */
  makeVcpus(count: number): number {
    if (count !== this.config.vcpus) return no("EINVAL");
    if (this.vcpus.length === 0) this.vcpus = Array.from({ length: count }, (_, id) => new Vcpu(id));
    return 0;
  }

  pause(): number {
    if (this.pauses >= 255) return no("EOVERFLOW");
    this.pauses++;
    return 0;
  }

  unpause(): number {
    if (this.pauses === 0) return no("EINVAL");
    this.pauses--;
    this.creationFinished = true;
    return 0;
  }

  /** Stops all vCPUs. A suspend signals the subscribed port instead of VIRQ_DOM_EXC. */
  shutdown(reason: number): void {
    if (this.dying || this.shutdownCode !== undefined) return;
    this.shutdownCode = reason;
    for (const vcpu of this.vcpus) vcpu.pausedForShutdown = true;
    if (reason === SHUTDOWN.suspend && this.suspendPort > 0) {
      this.#host.eventChannels.send(this.domid, this.suspendPort);
    } else {
      this.#host.domainException();
    }
  }

  /** XEN_DOMCTL_resumedomain: a domain that did not shut down is left as it is. */
  resume(): void {
    this.shutdownCode = undefined;
    for (const vcpu of this.vcpus) vcpu.pausedForShutdown = false;
  }

  /** It stays listed as dying while others hold its pages. */
  destroy(): void {
    if (this.dying) return;
    this.pauses++;
    this.dying = true;
    this.#host.eventChannels.removeDomain(this.domid);
    for (const vcpu of this.vcpus) this.#dropVcpuInfo(vcpu);
    this.paging.drop();
    this.memory.relinquish();
    if (this.memory.liveFrames === 0) this.#host.forget(this);
    this.#host.domainException();
  }

  /** Whether the guest's code runs on this vCPU. */
  runs(vcpu: Vcpu): boolean {
    return !this.dying && this.pauses === 0 && vcpu.ready;
  }

  /** An access of a running vCPU to a page (hvm_hap_nested_page_fault). "wait": try again later. */
  access(vcpu: Vcpu, gfn: number, kind: "read" | "write" | "fetch"): Access {
    if (!this.runs(vcpu)) return "wait";
    const { type, frame } = this.memory.p2m.get(gfn);
    switch (type) {
      case "hole":
        if (kind === "fetch") this.shutdown(SHUTDOWN.crash);
        return "nothing";
      case "ram_paging_out":
      case "ram_paged":
        this.paging.request(gfn, vcpu);
        return "wait";
      case "ram_paging_in":
        vcpu.spins++;
        return "wait";
      case "ram_logdirty":
      case "ram_rw": {
        if (frame === undefined) throw new Error("the simulator has RAM without a frame");
        if (kind === "write" && type === "ram_logdirty") {
          this.memory.dirty?.add(gfn);
          this.memory.p2m.set(gfn, "ram_rw", frame);
        }
        return { frame };
      }
    }
  }

  /**
   * VCPUOP_register_vcpu_info: 0 or -errno. The page must be there: being named by number, it is not asked for. It cannot be paged
   * out from then on.
   */
  registerVcpuInfo(caller: Vcpu, target: Vcpu, gfn: number): number {
    if (target.vcpuInfo !== undefined) return no("EINVAL");
    if (target !== caller && !target.down) return no("EINVAL");
    const { frame } = this.memory.p2m.get(gfn);
    if (frame === undefined) return no("EINVAL");
    frame.retain();
    target.vcpuInfo = frame;
    return 0;
  }

  #dropVcpuInfo(vcpu: Vcpu): void {
    vcpu.vcpuInfo?.release();
    vcpu.vcpuInfo = undefined;
  }

  /** XENMEM_add_to_physmap of shared_info: 0 or -errno. */
  mapSharedInfo(gfn: number): number {
    this.sharedInfo ??= this.memory.allocateXenHeap();
    if (this.sharedInfo === undefined) return no("ENOMEM");
    const result = this.memory.addXenHeap(gfn, this.sharedInfo);
    if (result === 0) this.sharedInfoGfn = BigInt(gfn);
    return result;
  }

  /** XENMEM_add_to_physmap of a grant frame: 0 or -errno. */
  mapGrantFrame(index: number, gfn: number): number {
    const frame = this.grants.frame(index);
    return frame === undefined ? no("EINVAL") : this.memory.addXenHeap(gfn, frame);
  }

  info(): Uint8Array {
    const online = this.vcpus.filter(({ down }) => !down);
    const running = online.some((vcpu) => this.runs(vcpu));
    let flags = this.config.flags;
    if (this.dying) flags |= DOMINF.dying;
    if (this.pauses > 0) flags |= DOMINF.paused;
    flags |= running ? DOMINF.running : DOMINF.blocked;
    if (this.shutdownCode !== undefined) flags |= DOMINF.shutdown | (this.shutdownCode << DOMINF_SHUTDOWN_SHIFT);
    return GetDomainInfo.encode({
      domain: this.domid,
      flags,
      tot_pages: BigInt(this.memory.totalPages),
      max_pages: BigInt(this.memory.maxPages),
      paged_pages: BigInt(this.memory.pagedPages),
      shared_info_frame: this.sharedInfoGfn,
      nr_online_vcpus: online.length,
      max_vcpu_id: Math.max(this.vcpus.length - 1, 0),
      handle: this.config.handle,
      gpaddr_bits: 46,
      arch_config: { emulation_flags: this.config.emulationFlags },
    });
  }

  /** Frames for a mapping by dom0, and per frame 0 or -errno (arch/x86/mm.c, do_mmu_update). */
  foreignFrames(gfns: readonly bigint[]): { frames: (Frame | undefined)[]; errors: number[] } {
    const errors: number[] = [];
    const frames = gfns.map((gfn) => {
      const { type, frame } = this.memory.entryOf(gfn);
      if (type === "ram_paged") this.paging.request(Number(gfn), undefined);
      const absent = type === "ram_paged" || type === "ram_paging_in" ? no("ENOENT") : no("EINVAL");
      errors.push(frame === undefined || this.dying ? absent : 0);
      return this.dying ? undefined : frame;
    });
    return { frames, errors };
  }

  /** Copies between one of its pages and dom0 by a grant. */
  copyGranted(gfn: number, frame: Frame, offset: number, from: Uint8Array): void {
    this.memory.write(gfn, frame, offset, from.subarray(0, PAGE_BYTES - offset));
  }
}
