/**
 * A guest in a simulated domain: programs that touch memory through the domain's page tables, and a kernel that suspends and
 * resumes as a PVH Linux does (drivers/xen/manage.c, arch/x86/xen/enlighten.c). Nothing runs by itself: a test calls
 * {@link SimGuest.step}. All that a clone must inherit is in the domain (memory, registers), so that a clone's guest is made from
 * its domain alone.
 */
import { HVM_PARAM, SHUTDOWN } from "../../../hypercall/abi/mod.ts";
import { PAGE_BYTES } from "../../../hypercall/ports.ts";
import type { Domain } from "../domain.ts";
import type { SimXen } from "../sim_xen.ts";
import type { Vcpu } from "../vcpu.ts";
import type { SimXenstore } from "../xenstore/server.ts";
import { bootDomain, type BootOptions, KERNEL_MAGIC, KernelPage } from "./boot.ts";
import { GuestStore } from "./guest_store.ts";
import { inspectPage, type PatternPage, patternPage } from "./pattern.ts";

/** What the guest does when it is asked to suspend. */
export type SuspendManners = "suspends" | "ignores" | "powers-off" | "crashes";

export interface GuestOptions {
  readonly suspend?: SuspendManners;
  /** Steps between the request to suspend and the suspend. */
  readonly suspendDelaySteps?: number;
  /** Runs in a clone once its kernel has resumed there: what its user space does first. */
  readonly onRestored?: (guest: SimGuest) => void;
}

/** A program of the guest: it yields wherever it cannot go on now. */
export type Program<T = void> = Generator<void, T, void>;

/** How a step ended: something ran, all that is there waits, or the domain does not run. */
export type StepResult = "ran" | "waits" | "stopped";

const CALLBACK_VECTOR = (2n << 56n) | 0xf3n;
const CANCELLED = 1n;

export class SimGuest {
  readonly domid: number;
  /** How often a suspend was cancelled: it ran on as the parent of a fork. */
  resumes = 0;
  /** How often it found itself restored: it is a clone. */
  restores = 0;
  /** Why its kernel gave up. */
  panic: string | undefined;
  /** Pages that held what was never written there. */
  readonly wrongPages: number[] = [];
  store: GuestStore | undefined;
  readonly #xen: SimXen;
  readonly #xenstore: SimXenstore;
  readonly #options: GuestOptions;
  readonly #programs = new Set<{ readonly vcpu: number; readonly program: Program<unknown> }>();

  private constructor(xen: SimXen, xenstore: SimXenstore, domid: number, options: GuestOptions) {
    this.#xen = xen;
    this.#xenstore = xenstore;
    this.domid = domid;
    this.#options = options;
  }

  /** A new domain with a running guest. */
  static boot(xen: SimXen, xenstore: SimXenstore, options: BootOptions & GuestOptions = {}): SimGuest {
    const { domain } = bootDomain(xen, xenstore, options);
    const guest = new SimGuest(xen, xenstore, domain.domid, options);
    guest.#connect();
    guest.spawn(0, guest.#kernel());
    return guest;
  }

  /** The guest in a domain that was made from another's saved state: it goes on where that one suspended. */
  static adopt(xen: SimXen, xenstore: SimXenstore, domid: number, options: GuestOptions = {}): SimGuest {
    const guest = new SimGuest(xen, xenstore, domid, options);
    guest.spawn(0, guest.#restoredKernel());
    return guest;
  }

  get domain(): Domain {
    return this.#xen.domain(this.domid);
  }

  /** Whether its code can run at all. */
  get alive(): boolean {
    const domain = this.#xen.find(this.domid);
    return domain !== undefined && !domain.dying && domain.shutdownCode === undefined;
  }

  spawn(vcpu: number, program: Program<unknown>): void {
    this.#programs.add({ vcpu, program });
  }

  /** Programs that have not ended, the kernel among them. */
  get programs(): number {
    return this.#programs.size;
  }

  /** Lets each program go on once, on its vCPU, if that can run. */
  step(): StepResult {
    if (!this.alive) return "stopped";
    let ran = false;
    for (const entry of [...this.#programs]) {
      const vcpu = this.domain.vcpus[entry.vcpu];
      if (vcpu === undefined || !this.domain.runs(vcpu)) continue;
      ran = true;
      this.#xen.mappings.settle();
      if (entry.program.next().done === true) this.#programs.delete(entry);
      if (!this.alive) return "stopped";
    }
    return ran ? "ran" : "waits";
  }

  /** Bytes of a page, or undefined while it is not there; ones where there is no page. */
  tryRead(vcpu: number, gfn: number, offset = 0, byteLength = PAGE_BYTES): Uint8Array | undefined {
    this.#xen.mappings.settle();
    const access = this.domain.access(this.#vcpu(vcpu), gfn, "read");
    if (access === "wait") return undefined;
    if (access === "nothing") return new Uint8Array(byteLength).fill(0xff);
    return access.frame.bytes.slice(offset, offset + byteLength);
  }

  /** Whether the write was done; it goes nowhere where there is no page. */
  tryWrite(vcpu: number, gfn: number, offset: number, bytes: Uint8Array): boolean {
    this.#xen.mappings.settle();
    const access = this.domain.access(this.#vcpu(vcpu), gfn, "write");
    if (access === "wait") return false;
    if (access !== "nothing") access.frame.write(offset, bytes);
    return true;
  }

  #vcpu(index: number): Vcpu {
    const vcpu = this.domain.vcpus[index];
    if (vcpu === undefined) throw new RangeError(`the guest has no vCPU ${index}`);
    return vcpu;
  }

  *read(vcpu: number, gfn: number, offset = 0, byteLength = PAGE_BYTES): Program<Uint8Array> {
    for (;;) {
      const bytes = this.tryRead(vcpu, gfn, offset, byteLength);
      if (bytes !== undefined) return bytes;
      yield;
    }
  }

  *write(vcpu: number, gfn: number, offset: number, bytes: Uint8Array): Program {
    while (!this.tryWrite(vcpu, gfn, offset, bytes)) yield;
  }

  /** Fills a page with its pattern. */
  *fill(vcpu: number, gfn: number, page: PatternPage): Program {
    yield* this.write(vcpu, gfn, 0, patternPage(gfn, page));
  }

  /** What the page holds. A wrong one is noted in `wrongPages`. */
  *verify(vcpu: number, gfn: number): Program<PatternPage | "zero" | "wrong"> {
    const found = inspectPage(gfn, yield* this.read(vcpu, gfn));
    if (found === "wrong") this.wrongPages.push(gfn);
    return found;
  }

  /** A request to the agent, and its answer once there is one. */
  *ask(sequence: string, request: string): Program<string> {
    const { store } = this;
    if (store === undefined) throw new Error("the guest has no xenstore");
    store.write("data/snowflock/request", `${sequence} ${request}`);
    for (;;) {
      const answer = store.read("data/snowflock/answer");
      if (answer?.startsWith(`${sequence} `)) return answer;
      yield;
    }
  }

  /** Grants a page to dom0: the reference can be used at once. */
  grant(reference: number, gfn: number, readOnly = false): void {
    this.domain.grants.grant(reference, 0, gfn, readOnly);
  }

  #connect(): void {
    this.store = new GuestStore(this.#xenstore.connectGuest(this.domid));
    this.store.watch("control/shutdown", "shutdown");
  }

  *#kernel(): Program {
    for (;;) {
      yield;
      const events = this.store?.takeEvents() ?? [];
      if (!events.some(({ token }) => token === "shutdown")) continue;
      if (this.store?.read("control/shutdown") === "suspend") yield* this.#onSuspendRequest();
    }
  }

  *#onSuspendRequest(): Program {
    const manners = this.#options.suspend ?? "suspends";
    if (manners === "ignores") return;
    for (let step = 0; step < (this.#options.suspendDelaySteps ?? 0); step++) yield;
    this.store?.write("control/shutdown", "");
    if (manners !== "suspends") {
      this.domain.shutdown(manners === "crashes" ? SHUTDOWN.crash : SHUTDOWN.poweroff);
      return yield;
    }
    yield* this.#suspend();
  }

  /** Freezing a kernel writes to its stack, its data and its per-CPU areas. Then vCPU 0 stops with rax = 0. */
  *#suspend(): Program {
    const vcpu = this.#vcpu(0);
    const gfn = Number(vcpu.cpu.rbx);
    const kernel = KernelPage.decode(yield* this.read(0, gfn));
    yield* this.write(0, gfn, 0, KernelPage.encode({ ...kernel, suspends: kernel.suspends + 1 }));
    yield* this.write(0, Number(kernel.stack_gfn), 8, Uint8Array.of(kernel.suspends + 1));
    for (let index = 0; index < kernel.vcpus; index++) {
      yield* this.write(0, Number(kernel.vcpu_info_gfn) + index, 0, Uint8Array.of(1));
    }
    vcpu.cpu.rax = 0n;
    this.domain.shutdown(SHUTDOWN.suspend);
    yield;
    // Here again: in the parent, whose suspend the agent has cancelled, or without it, in the domain restored in place.
    if (vcpu.cpu.rax === CANCELLED) {
      this.resumes++;
      this.domain.params.set(HVM_PARAM.CALLBACK_IRQ, CALLBACK_VECTOR);
    } else {
      yield* this.#restore();
    }
  }

  *#restoredKernel(): Program {
    yield* this.#restore();
    yield* this.#kernel();
  }

  /** What a kernel does that finds itself in a new domain. It panics on what Linux panics on. */
  *#restore(): Program {
    const boot = this.#vcpu(0);
    const kernel = KernelPage.decode(yield* this.read(0, Number(boot.cpu.rbx)));
    if (kernel.magic !== KERNEL_MAGIC) return this.#giveUp("its data are gone");
    if (boot.cpu.rax !== 0n) return this.#giveUp("a clone was told that its suspend was cancelled");
    if (this.domain.mapSharedInfo(Number(kernel.shared_info_gfn)) !== 0) return this.#giveUp("no shared_info");
    this.domain.params.set(HVM_PARAM.CALLBACK_IRQ, CALLBACK_VECTOR);
    for (const vcpu of this.domain.vcpus) {
      if (vcpu !== boot) vcpu.down = true;
      const result = this.domain.registerVcpuInfo(boot, vcpu, Number(kernel.vcpu_info_gfn) + vcpu.id);
      if (result !== 0) return this.#giveUp(`register_vcpu_info failed: err=${result}`);
      vcpu.down = false;
    }
    if (this.domain.mapGrantFrame(0, Number(kernel.grant_gfn)) !== 0) return this.#giveUp("no grant table");
    if (!this.#xenstore.isIntroduced(this.domid)) return this.#giveUp("xenstored does not know it");
    this.#connect();
    this.restores++;
    this.#options.onRestored?.(this);
  }

  #giveUp(reason: string): void {
    this.panic = reason;
    this.domain.shutdown(SHUTDOWN.crash);
  }
}
