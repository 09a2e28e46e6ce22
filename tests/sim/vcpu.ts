import { HvmHwCpu } from "../../hypercall/abi/mod.ts";
import type { Frame } from "./frames.ts";

/** The state of a vCPU that moves with it. */
export class Vcpu {
  /** The CPU record of the saved context. */
  readonly cpuBytes = new Uint8Array(HvmHwCpu.size);
  /** The other records of the saved context that belong to the vCPU, by typecode. */
  readonly records = new Map<number, Uint8Array>();
  initialised = false;
  /** VPF_down: a vCPU that never came up, or was not in the context that was loaded. */
  down = true;
  pausedForShutdown = false;
  /** Paused once for each paging request of its own that is not answered. */
  vmEventPauses = 0;
  /** The gfn for which it sleeps until the ring has a free slot. */
  waitsForSlot: number | undefined;
  /** The page that holds its vcpu_info, referenced by Xen. */
  vcpuInfo: Frame | undefined;
  /** Faults on a page that is on its way in: the vCPU retries, and Xen tells nobody. */
  spins = 0;

  constructor(readonly id: number) {}

  get cpu() {
    return HvmHwCpu.view(this.cpuBytes);
  }

  /** Whether nothing but the domain's own pause count keeps it from running. */
  get ready(): boolean {
    return !this.down && !this.pausedForShutdown && this.vmEventPauses === 0 && this.waitsForSlot === undefined;
  }
}
