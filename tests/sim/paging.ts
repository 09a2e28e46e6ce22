/** Memory paging: the ring from Xen's end, and the three operations (common/vm_event.c, arch/x86/mm/mem_paging.c). */
import {
  MEM_PAGING,
  P2M,
  RING_ENTRIES,
  RING_HEADER_BYTES,
  RingHeader,
  VM_EVENT_FLAG,
  VM_EVENT_INTERFACE_VERSION,
  VM_EVENT_REASON,
  VmEvent,
} from "../../hypercall/abi/mod.ts";
import type { DomainMemory } from "./domain_memory.ts";
import { HostCrash, no } from "./errno.ts";
import type { Frame } from "./frames.ts";
import type { Vcpu } from "./vcpu.ts";

/** p2m types in requests; one that is in no paging state never makes a request. */
const P2M_NUMBER = { ram_paging_out: P2M.ram_paging_out, ram_paged: P2M.ram_paged, ram_paging_in: P2M.ram_paging_in };
type PagingType = keyof typeof P2M_NUMBER;

const RUNAWAY_ANSWERS = 1 << 16;

interface Ring {
  readonly frame: Frame;
  readonly port: number;
  /** Free-running, 32 bits. */
  requestsMade: number;
  responsesTaken: number;
}

/** What the domain around it does for the ring. */
export interface PagingHost {
  vcpus(): readonly Vcpu[];
  notify(port: number): void;
  /** A guest touched a paged page and no ring is there. */
  crash(): void;
}

export class Paging {
  readonly #memory: DomainMemory;
  readonly #host: PagingHost;
  #ring: Ring | undefined;

  constructor(memory: DomainMemory, host: PagingHost) {
    this.#memory = memory;
    this.#host = host;
  }

  get enabled(): boolean {
    return this.#ring !== undefined;
  }

  get port(): number | undefined {
    return this.#ring?.port;
  }

  /** Slots that a new request could take. */
  get freeSlots(): number {
    if (this.#ring === undefined) return 0;
    // Signed, as in RING_FREE_REQUESTS: answers that nobody asked for make Xen believe in more slots than there are.
    return RING_ENTRIES - ((this.#ring.requestsMade - this.#ring.responsesTaken) | 0);
  }

  /** Holds the ring's page from now on. Xen trusts what the page's indices say. */
  enable(frame: Frame, port: number): void {
    frame.retain();
    this.#ring = { frame, port, requestsMade: 0, responsesTaken: 0 };
  }

  /** 0 or -errno; the caller frees the port. */
  disable(): number {
    const ring = this.#ring;
    if (ring === undefined) return no("EINVAL");
    if (this.#host.vcpus().some(({ waitsForSlot }) => waitsForSlot !== undefined)) return no("EBUSY");
    this.#ring = undefined;
    ring.frame.release();
    return 0;
  }

  /** The end of the domain takes the ring with it. */
  drop(): void {
    for (const vcpu of this.#host.vcpus()) vcpu.waitsForSlot = undefined;
    this.disable();
  }

  /**
   * p2m_mem_paging_populate(): somebody needs a page that is in a paging state. `vcpu` is the guest's own, or undefined for
   * another domain's (dom0's vCPU 0). A guest's vCPU sleeps while the ring is full; a foreigner's request is dropped then.
   */
  request(gfn: number, vcpu: Vcpu | undefined): void {
    const ring = this.#ring;
    if (ring === undefined) return this.#host.crash();
    if (this.freeSlots === 0) {
      if (vcpu !== undefined) vcpu.waitsForSlot = gfn;
      return;
    }
    if (vcpu !== undefined) vcpu.waitsForSlot = undefined;
    const { type, frame } = this.#memory.p2m.get(gfn);
    let pagingFlags = 0;
    if (type === "ram_paging_out" || type === "ram_paged") {
      if (type === "ram_paging_out") pagingFlags |= MEM_PAGING.evict_fail;
      this.#memory.p2m.set(gfn, "ram_paging_in", frame);
    }
    let flags = 0;
    if (isPaging(type) && vcpu !== undefined) {
      vcpu.vmEventPauses++;
      flags |= VM_EVENT_FLAG.vcpu_paused;
    } else if (type !== "ram_paging_out" && type !== "ram_paged") {
      return;
    }
    if (vcpu === undefined) flags |= VM_EVENT_FLAG.foreign;
    if (!isPaging(type)) return;
    this.#put(ring, { gfn, flags, pagingFlags, vcpu: vcpu?.id ?? 0, p2mt: P2M_NUMBER[type] });
  }

  #put(
    ring: Ring,
    request: { gfn: number; flags: number; pagingFlags: number; vcpu: number; p2mt: number },
  ): void {
    const entry = VmEvent.encode({
      version: VM_EVENT_INTERFACE_VERSION,
      flags: request.flags,
      reason: VM_EVENT_REASON.mem_paging,
      vcpu_id: request.vcpu,
      gfn: BigInt(request.gfn),
      p2mt: request.p2mt,
      paging_flags: request.pagingFlags,
    });
    ring.frame.write(slotOffset(ring.requestsMade), entry);
    ring.requestsMade = (ring.requestsMade + 1) >>> 0;
    this.#writeIndex(ring, "req_prod", ring.requestsMade);
    this.#host.notify(ring.port);
  }

  /** vm_event_resume(): takes the pager's answers. 0 or -errno. */
  resume(): number {
    const ring = this.#ring;
    if (ring === undefined) return no("ENODEV");
    const produced = RingHeader.view(ring.frame.bytes).rsp_prod;
    const waiting = (produced - ring.responsesTaken) >>> 0;
    // Answers without a request are taken like others. An index that is wrong keeps Xen busy for billions of turns.
    if (waiting > RUNAWAY_ANSWERS) throw new HostCrash(`the pager's index claims ${waiting} answers`);
    for (let count = 0; count < waiting; count++) {
      const response = VmEvent.decode(ring.frame.bytes, slotOffset(ring.responsesTaken));
      ring.responsesTaken = (ring.responsesTaken + 1) >>> 0;
      this.#writeIndex(ring, "rsp_event", (ring.responsesTaken + 1) >>> 0);
      if (response.version !== VM_EVENT_INTERFACE_VERSION) continue;
      const vcpu = this.#host.vcpus()[response.vcpu_id];
      if (vcpu === undefined || vcpu.vmEventPauses === 0) continue;
      if (response.reason === VM_EVENT_REASON.mem_paging && (response.paging_flags & MEM_PAGING.drop_page) === 0) {
        this.#resumePage(response.gfn);
      }
      if ((response.flags & VM_EVENT_FLAG.vcpu_paused) !== 0) vcpu.vmEventPauses--;
    }
    this.#wakeWaiting();
    return 0;
  }

  /** p2m_mem_paging_resume(): a page that was only nominated goes back to plain RAM by the answer itself. */
  #resumePage(gfn: bigint): void {
    const { type, frame } = this.#memory.entryOf(gfn);
    if (type === "ram_paging_in" && frame !== undefined) {
      this.#memory.p2m.set(Number(gfn), this.#memory.ramType, frame);
    }
  }

  /** vCPUs that slept for a slot ask again, as long as there are slots. */
  #wakeWaiting(): void {
    for (const vcpu of this.#host.vcpus()) {
      if (vcpu.waitsForSlot === undefined || this.freeSlots === 0) continue;
      const gfn = vcpu.waitsForSlot;
      vcpu.waitsForSlot = undefined;
      if (isPaging(this.#memory.p2m.get(gfn).type)) this.request(gfn, vcpu);
    }
  }

  #writeIndex(ring: Ring, field: "req_prod" | "rsp_event", value: number): void {
    const word = new Uint8Array(4);
    new DataView(word.buffer).setUint32(0, value, true);
    ring.frame.write(RingHeader.offsets[field], word);
  }

  /** XENMEM_paging_op_nominate: 0 or -errno. */
  nominate(gfn: number): number {
    const { type, frame } = this.#memory.p2m.get(gfn);
    if (frame === undefined || (type !== "ram_rw" && type !== "ram_logdirty")) return no("EBUSY");
    if (frame.xenHeap || frame.references > 0) return no("EBUSY");
    // A whole 2 MiB entry is split, which takes a table.
    if (!this.#memory.p2m.ensureTable(gfn)) return no("ENOMEM");
    this.#memory.p2m.set(gfn, "ram_paging_out", frame);
    return 0;
  }

  /** XENMEM_paging_op_evict: 0 or -errno. */
  evict(gfn: number): number {
    const { type, frame } = this.#memory.p2m.get(gfn);
    if (frame === undefined || type !== "ram_paging_out" || frame.references > 0) return no("EBUSY");
    this.#memory.p2m.set(gfn, "ram_paged", undefined);
    frame.deallocate();
    this.#memory.pagedPages++;
    return 0;
  }

  /** XENMEM_paging_op_prep: 0 or -errno. `content` reads the caller's buffer; undefined for a null pointer. */
  prep(gfn: number, content: (() => Uint8Array | undefined) | undefined): number {
    const entry = this.#memory.p2m.get(gfn);
    if (entry.type !== "ram_paging_in" && entry.type !== "ram_paged") return no("ENOENT");
    let frame = entry.frame;
    if (frame === undefined) {
      if (content === undefined) return no("EINVAL");
      frame = this.#memory.allocate(gfn);
      if (frame === undefined) return no("ENOMEM");
      const bytes = content();
      if (bytes === undefined) {
        frame.deallocate();
        return no("EFAULT");
      }
      frame.write(0, bytes);
      this.#memory.pagedPages--;
    }
    this.#memory.p2m.set(gfn, this.#memory.ramType, frame);
    return 0;
  }
}

export function isPaging(type: string): type is PagingType {
  return type in P2M_NUMBER;
}

function slotOffset(index: number): number {
  return RING_HEADER_BYTES + (index % RING_ENTRIES) * VmEvent.size;
}
