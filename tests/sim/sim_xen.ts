/** A simulated hypervisor: one host, its domains and its memory. `machine.ts` is dom0's way to it, `guest/` what runs in domains. */
import {
  CpuidLeaf,
  DOMID_FIRST_RESERVED,
  DOMINF,
  type InterfaceVersions,
  interfaceVersions,
  MsrEntry,
} from "../../hypercall/abi/mod.ts";
import type { Domid } from "../../hypercall/ports.ts";
import { Domain, type DomainConfig, type DomainHost } from "./domain.ts";
import { no } from "./errno.ts";
import { EventChannels } from "./event_channels.ts";
import { HostMemory } from "./frames.ts";
import { Mappings } from "./mappings.ts";

export interface SimXenOptions {
  /** "4.17" if left out. */
  readonly version?: "4.17" | "4.18" | "4.19" | "4.20" | "4.21" | "4.22";
  /** Of the host, beside what dom0 has. 256 MiB if left out. */
  readonly memoryPages?: number;
  /** Whether CONFIG_MEM_PAGING is built in. */
  readonly paging?: boolean;
  /** Whether dom0 is PVH: it may not page then. */
  readonly pvhDom0?: boolean;
  readonly cpus?: number;
  /** What this host's CPUs offer to guests: CPUID leaves and MSRs. */
  readonly cpuPolicy?: { readonly leaves: Uint8Array; readonly msrs: Uint8Array };
}

/** A small policy: a vendor leaf, features, extended features, and one MSR. */
export function defaultCpuPolicy(): { leaves: Uint8Array; msrs: Uint8Array } {
  const leaves = [
    CpuidLeaf.encode({ leaf: 0, subleaf: 0xffff_ffff, a: 0xd, b: 0x68747541, c: 0x444d4163, d: 0x69746e65 }),
    CpuidLeaf.encode({ leaf: 1, subleaf: 0xffff_ffff, a: 0x00800f12, c: 0xfed8320b, d: 0x178bfbff }),
    CpuidLeaf.encode({ leaf: 7, subleaf: 0, b: 0x209c01a9 }),
    CpuidLeaf.encode({ leaf: 0x8000_0008, subleaf: 0xffff_ffff, a: 0x302e }),
  ];
  return { leaves: joined(leaves), msrs: MsrEntry.encode({ idx: 0xce, val: 0n }) };
}

function joined(parts: readonly Uint8Array[]): Uint8Array {
  const bytes = new Uint8Array(parts.reduce((sum, { byteLength }) => sum + byteLength, 0));
  let offset = 0;
  for (const part of parts) {
    bytes.set(part, offset);
    offset += part.byteLength;
  }
  return bytes;
}

export class SimXen {
  readonly major: number;
  readonly minor: number;
  readonly interfaces: InterfaceVersions;
  readonly options: SimXenOptions;
  readonly memory: HostMemory;
  readonly eventChannels = new EventChannels();
  readonly mappings = new Mappings();
  readonly cpuPolicy: { readonly leaves: Uint8Array; readonly msrs: Uint8Array };
  readonly #domains = new Map<number, Domain>();
  readonly #exceptionListeners = new Set<() => void>();
  #lastDomid = 0;

  constructor(options: SimXenOptions = {}) {
    this.options = options;
    const [major = 0, minor = 0] = (options.version ?? "4.17").split(".").map(Number);
    const interfaces = interfaceVersions(major, minor);
    if (interfaces === undefined) throw new RangeError(`no interfaces are known for Xen ${major}.${minor}`);
    this.major = major;
    this.minor = minor;
    this.interfaces = interfaces;
    this.memory = new HostMemory(options.memoryPages ?? 65_536);
    this.cpuPolicy = options.cpuPolicy ?? defaultCpuPolicy();
    this.eventChannels.addDomain(0);
  }

  /** Called for each VIRQ_DOM_EXC, until the result is disposed of. */
  onDomainException(listener: () => void): Disposable {
    this.#exceptionListeners.add(listener);
    return { [Symbol.dispose]: () => void this.#exceptionListeners.delete(listener) };
  }

  /** XEN_DOMCTL_createdomain: the domain, or -errno. `domid` 0 or one out of range: the next free one is taken. */
  createDomain(asked: Omit<DomainConfig, "flags" | "domid"> & { domid: number }): Domain | number {
    let domid = asked.domid;
    if (domid > 0 && domid < DOMID_FIRST_RESERVED) {
      if (this.#domains.has(domid)) return no("EEXIST");
    } else {
      domid = this.#freeDomid();
    }
    const flags = DOMINF.hvm_guest | DOMINF.hap;
    const domain = new Domain(this.#hostOf(), { ...asked, domid, flags }, this.cpuPolicy);
    if (!domain.memory.takeInitialPool()) return no("ENOMEM");
    this.#domains.set(domid, domain);
    this.eventChannels.addDomain(domid, asked.maxPort);
    return domain;
  }

  #freeDomid(): number {
    do {
      this.#lastDomid = this.#lastDomid + 1 >= DOMID_FIRST_RESERVED ? 1 : this.#lastDomid + 1;
    } while (this.#domains.has(this.#lastDomid));
    return this.#lastDomid;
  }

  #hostOf(): DomainHost {
    return {
      memory: this.memory,
      eventChannels: this.eventChannels,
      domainException: () => {
        for (const listener of [...this.#exceptionListeners]) listener();
      },
      forget: (domain) => void this.#domains.delete(domain.domid),
    };
  }

  find(domid: number): Domain | undefined {
    return this.#domains.get(domid);
  }

  /** For tests: throws where there is no such domain. */
  domain(domid: Domid | number): Domain {
    const domain = this.#domains.get(domid);
    if (domain === undefined) throw new Error(`there is no domain ${domid}`);
    return domain;
  }

  /** In ascending order of their numbers. */
  domains(): Domain[] {
    return [...this.#domains.values()].sort((a, b) => a.domid - b.domid);
  }
}
