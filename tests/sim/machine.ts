/** dom0's ports to a simulated hypervisor, as one process has them. */
import { errno, XenError } from "../../hypercall/errors.ts";
import {
  type Domid,
  type EventChannelPort,
  type ForeignMapping,
  type ForeignMemoryPort,
  type GrantPort,
  type HypercallPort,
  type Machine,
  type PinnedMemory,
  type Poller,
  type Wakeup,
} from "../../hypercall/ports.ts";
import { AddressSpace } from "./address_space.ts";
import { ProcessKilled } from "./errno.ts";
import { SimEventChannels } from "./event_channel_device.ts";
import { Faults } from "./faults.ts";
import { SimGrants } from "./grant_device.ts";
import { dmOp } from "./hypercalls/dm_op.ts";
import { type CallContext, type NamedCall } from "./hypercalls/context.ts";
import { decodeCall } from "./hypercalls/dispatch.ts";
import { Descriptors, SimPoller, SimWakeup } from "./poller.ts";
import { foreignMapping, pinnedMemory } from "./process_memory.ts";
import type { SimXen } from "./sim_xen.ts";

type Code = Parameters<typeof errno>[0];

/** A process of dom0 on a simulated host. */
export class SimMachine implements Machine, HypercallPort, ForeignMemoryPort {
  readonly xen: SimXen;
  readonly faults: Faults;
  readonly space = new AddressSpace();
  readonly hypercalls: HypercallPort = this;
  readonly foreignMemory: ForeignMemoryPort = this;
  readonly #descriptors = new Descriptors();
  /** What the kernel takes back when the process ends. */
  readonly #held = new Set<Disposable>();
  readonly #context: CallContext;
  #killed = false;

  constructor(xen: SimXen, faults: Faults) {
    this.xen = xen;
    this.faults = faults;
    this.#context = { xen, space: this.space, faults };
  }

  get killed(): boolean {
    return this.#killed;
  }

  /** Mappings, descriptors and connections that the process has not given back: a test for leaks. */
  get heldResources(): number {
    return this.#held.size;
  }

  /** What SIGKILL does: the kernel takes everything back, and no call of the process reaches anything any more. */
  kill(): void {
    if (this.#killed) return;
    this.#killed = true;
    for (const resource of [...this.#held].reverse()) resource[Symbol.dispose]();
    this.#held.clear();
  }

  /** Has the resource taken back at the end of the process. Until the result is disposed of. */
  hold(resource: Disposable): Disposable {
    this.#held.add(resource);
    return { [Symbol.dispose]: () => void this.#held.delete(resource) };
  }

  /**
   * One step of the process: faults are applied, memory is settled. `failed` turns an injected errno into the result. Throws
   * {@link ProcessKilled} in a killed process.
   */
  step<T>(name: string, perform: () => T, failed: (code: Code) => T): T {
    this.checkAlive();
    const fate = this.faults.enter(name);
    if (fate === "kill") this.kill();
    this.checkAlive();
    this.xen.mappings.settle();
    const result = typeof fate === "object" ? failed(fate.errno) : perform();
    if (fate === "kill-after") this.kill();
    this.checkAlive();
    return result;
  }

  checkAlive(): void {
    if (this.#killed) throw new ProcessKilled("the process was killed");
  }

  allocate(byteLength: number): PinnedMemory {
    const failed = (code: Code): never => {
      throw new XenError(`pin ${byteLength} bytes of memory`, errno(code));
    };
    return this.step("allocate", () => pinnedMemory(this, byteLength), failed);
  }

  call(op: number, ...args: bigint[]): bigint {
    this.checkAlive();
    return BigInt(this.#perform(decodeCall(this.#context, op, args)));
  }

  deviceModelOp(domid: Domid, buffer: Uint8Array): number {
    this.checkAlive();
    return this.#perform(dmOp(this.#context, domid, buffer));
  }

  #perform({ name, perform }: NamedCall): number {
    return this.step(name, perform, (code) => -errno(code));
  }

  map(domid: Domid, gfns: BigUint64Array, { write }: { readonly write: boolean }): ForeignMapping {
    const operation = `map ${gfns.length} pages of domain ${domid}`;
    const failed = (code: Code): never => {
      throw new XenError(operation, errno(code));
    };
    return this.step(
      "foreign.map",
      () => {
        const domain = this.xen.find(domid);
        const list = Array.from(gfns);
        const { frames, errors } = domain === undefined
          ? { frames: list.map(() => undefined), errors: list.map(() => -errno("ESRCH")) }
          : domain.foreignFrames(list);
        return foreignMapping(this, frames, errors, write);
      },
      failed,
    );
  }

  mapResource(domid: Domid, type: number, id: number, firstFrame: number, frames: number): ForeignMapping {
    const failed = (code: Code): never => {
      throw new XenError(`map ${frames} frames of resource ${type} of domain ${domid}`, errno(code));
    };
    return this.step(
      "resource.map",
      () => {
        const domain = this.xen.find(domid);
        if (domain === undefined || domain.dying) return failed("ESRCH");
        // Only the grant table's shared frames are here.
        if (type !== 1 || id !== 0) return failed("EOPNOTSUPP");
        const found = Array.from({ length: frames }, (_, index) => domain.grants.frame(firstFrame + index));
        if (found.includes(undefined)) return failed("EINVAL");
        return foreignMapping(this, found, found.map(() => 0), true);
      },
      failed,
    );
  }

  openEventChannels(): EventChannelPort {
    this.checkAlive();
    return new SimEventChannels(this, this.#descriptors);
  }

  openGrants(): GrantPort {
    this.checkAlive();
    return new SimGrants(this);
  }

  openPoller(): Poller {
    this.checkAlive();
    return new SimPoller(this.#descriptors);
  }

  openWakeup(): Wakeup {
    this.checkAlive();
    return new SimWakeup(this.#descriptors);
  }

  wakeupOf(fd: number): Wakeup {
    this.checkAlive();
    return new SimWakeup(this.#descriptors, fd);
  }

  /** As on the real machine: what was made through it stays. */
  [Symbol.dispose](): void {}
}

/** A process of dom0. `faults` may be shared with its xenstore connection, so that steps are counted together. */
export function openSimMachine(xen: SimXen, faults: Faults = new Faults()): SimMachine {
  return new SimMachine(xen, faults);
}
