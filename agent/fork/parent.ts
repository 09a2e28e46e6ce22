/** The parent's side of a fork: suspend, capture, snapshot, resume. The parent stands still between suspend and resume. */
import { getLogger } from "@logtape/logtape";
import type { Domid, ForeignMemoryPort, Gfn, Port } from "../../hypercall/ports.ts";
import { DOM0 } from "../../hypercall/ports.ts";
import type { Xen } from "../../hypercall/xen_api.ts";
import { EngineError } from "../api/engine.ts";
import type { MemoryCalls } from "../memory/calls.ts";
import { discoverMemory, type MemoryMap } from "../memory/memory_map.ts";
import type { SnapshotReport } from "../memory/take_snapshot.ts";
import type { Descriptor, GuestShape } from "./descriptor.ts";
import { copiedParams, HvmParam, identityPageTable } from "./hvm_params.ts";
import { dirtyPages, logDirtyOff } from "./dirty_log.ts";
import { domainPath } from "./domain_tree.ts";
import type { Store } from "./store.ts";
import type { Clock } from "./timing.ts";
import { uuidText } from "./uuid.ts";
import { readVifs } from "./vif.ts";

/** SHUTDOWN_suspend (public/sched.h). */
const SUSPEND = 2;
/** A guest that has begun to suspend does so within this time. Later, somebody else has asked it to: xl saves it. */
const LATE_SUSPEND_MS = 60_000;
/** Where the toolstack puts the paging ring if the domain has none: special page 0 below 4 GiB - 4 KiB (xenguest.h). */
const DEFAULT_RING_GFN = 0xfeff8n as Gfn;
/** rax in vcpu_guest_context (public/arch-x86/xen-x86_64.h): user_regs at 520, rax 80 beyond. */
const CONTEXT_RAX = 600;

/** Writes down that a parent's ring is held, so that a crash of the agent cannot lose the parent. */
export interface HoldLog {
  addParent(parent: { domid: number; uuid: string; ring: string; ranges: [string, number][] }): void;
  removeParent(uuid: string): void;
}

export interface ParentPorts {
  readonly xen: Xen;
  readonly foreignMemory: ForeignMemoryPort;
  readonly store: Store;
  readonly memory: MemoryCalls;
  readonly clock: Clock;
  readonly holds: HoldLog;
}

/** A look for the pages that a parent's kernel holds free. What it has mapped is let go when it is disposed of. */
export interface FreeWalk extends Disposable {
  /** Their indexes, ascending, of a suspended guest with this context; none where that cannot be told for certain. */
  find(context: Uint8Array): Uint32Array;
}

export interface FreePageFinder {
  /** While the guest runs, long before its fork. */
  prepare(domid: Domid): Promise<void>;
  /** While the guest runs, just before its fork; undefined where nothing can be found. */
  begin(domid: Domid, map: MemoryMap): FreeWalk | undefined;
  forget(domid: Domid): void;
}

export interface ForkOptions {
  readonly snapshot: string;
  readonly family: string;
  /** How long the guest may take to suspend, milliseconds. */
  readonly suspendTimeoutMs: number;
  /** The parent stays suspended, as a template. */
  readonly frozen: boolean;
  /** The memory that shells were made for. */
  readonly map?: MemoryMap;
  /** What else must be frozen while the parent stands still. */
  readonly whileSuspended?: () => Promise<void>;
}

export interface ForkTimes {
  readonly pauseMs: number;
  readonly suspendMs: number;
  readonly captureMs: number;
  readonly nominateMs: number;
  readonly resumeMs: number;
}

export interface Fork {
  readonly descriptor: Descriptor;
  readonly times: ForkTimes;
  readonly snapshot: SnapshotReport;
}

export class Parents {
  readonly #ports: ParentPorts;
  readonly #freePages: FreePageFinder | undefined;
  readonly #shapes = new Map<Domid, GuestShape>();
  /** Pages of parents that were not cloned, when they were held. */
  readonly #heldPages = new Map<Domid, bigint>();
  readonly #cloned = new Set<Domid>();
  readonly #suspendPorts = new Map<Domid, Port>();
  readonly #waiting = new Map<Domid, () => void>();
  /** Until when a guest may suspend that was asked to and told not to, on the clock. */
  readonly #late = new Map<Domid, number>();
  /** Parents that are about to be held. */
  readonly #holding = new Set<Domid>();
  /** Parents whose release is awaited. */
  readonly #held = new Set<Domid>();
  /** Parents that an earlier agent held, whose pages are on their way back. */
  readonly #recovering = new Map<Domid, Promise<void>>();
  /** Domains that stay suspended, as templates. */
  readonly #frozen = new Set<Domid>();
  readonly #log = getLogger(["snowflock", "parent"]);

  constructor(ports: ParentPorts, freePages?: FreePageFinder) {
    this.#ports = ports;
    this.#freePages = freePages;
  }

  /** Says what a clone's machine is like: it was made from a descriptor, and cannot be asked while pages are absent. */
  learn(domid: Domid, shape: GuestShape): void {
    this.#shapes.set(domid, shape);
    this.#cloned.add(domid);
  }

  /** The domain is gone, or no longer held. */
  async forget(domid: Domid): Promise<void> {
    this.#shapes.delete(domid);
    this.#heldPages.delete(domid);
    this.#cloned.delete(domid);
    this.#freePages?.forget(domid);
    const port = this.#suspendPorts.get(domid);
    this.#suspendPorts.delete(domid);
    if (port !== undefined) await this.#ports.memory.unwatchSuspend(port);
  }

  /** What a shell for clones of `domid` must be like. Throws an EngineError if it cannot be forked. */
  async shapeOf(domid: Domid): Promise<GuestShape> {
    const { xen, store } = this.#ports;
    const info = xen.domainInfo(domid);
    if (domid === DOM0 || info === undefined || info.dying) {
      throw new EngineError("no-such-domain", `There is no domain ${domid} that could be forked`);
    }
    if (!info.hvm || !info.hap) {
      throw new EngineError("unsupported", `Domain ${domid} is no PVH or HVM guest with hardware-assisted paging`);
    }
    if (info.shutdown) throw new EngineError("cannot-suspend", `Domain ${domid} has shut down`);
    const vifs = await readVifs(store, domid);
    const known = this.#shapes.get(domid);
    if (known !== undefined) {
      // What is held is the memory that there was at the first of the forks that are open.
      if (info.totalPages > (this.#heldPages.get(domid) ?? info.totalPages)) {
        throw new EngineError("busy", `Domain ${domid} has got more memory since its last fork; end its tickets first`);
      }
      return { ...known, vifs };
    }
    if (xen.hvmParam(domid, HvmParam.pagingRing) === 0n) xen.setHvmParam(domid, HvmParam.pagingRing, DEFAULT_RING_GFN);
    const memory = discoverMemory(xen, domid);
    const target = await store.read(`${domainPath(domid)}/memory/target`);
    const memoryKib = /^\d{1,15}$/.test(target ?? "") ? BigInt(target ?? 0) : BigInt(memory.map.pages) * 4n;
    const shape: GuestShape = {
      vcpus: info.maxVcpuId + 1,
      maxPages: info.maxPages,
      memoryKib,
      memory,
      cpuPolicy: xen.cpuPolicy(domid),
      tsc: xen.tscInfo(domid),
      vifs,
    };
    return shape;
  }

  /** What can be learnt of a parent before its fork, so that the fork need not. */
  async prepare(domid: Domid): Promise<void> {
    if (!this.#cloned.has(domid)) await this.#freePages?.prepare(domid);
  }

  /** A domain said that it has suspended. Without a fork under way the suspend came too late: it goes on. */
  async onSuspended(domid: Domid): Promise<void> {
    const waiting = this.#waiting.get(domid);
    if (waiting !== undefined) return waiting();
    const info = this.#ports.xen.domainInfo(domid);
    if (info?.shutdown === true && info.shutdownReason === SUSPEND && !this.#frozen.has(domid)) {
      await this.#resume(domid);
    }
  }

  /**
   * Forks: when it resolves, the snapshot is taken and the parent runs again (unless it is to stay frozen). When it rejects, the
   * parent runs and there is no snapshot.
   */
  async fork(domid: Domid, parentName: string, options: ForkOptions): Promise<Fork> {
    const { xen, memory, clock } = this.#ports;
    const recovering = this.#recovering.get(domid);
    if (recovering !== undefined) await Promise.race([recovering, clock.sleep(options.suspendTimeoutMs)]);
    if (this.#recovering.has(domid)) {
      throw new EngineError("busy", `Domain ${domid} is still being let go after a restart of the agent`);
    }
    const shape = await this.shapeOf(domid);
    if (options.map !== undefined && !options.map.equals(shape.memory.map)) {
      throw new EngineError("ended", `The memory of domain ${domid} has changed since its ticket; request another`);
    }
    const ring = shape.memory.frames.get(HvmParam.pagingRing) ?? DEFAULT_RING_GFN;
    await this.#hold(domid, shape, ring);
    this.#shapes.set(domid, shape);
    await using undo = new AsyncDisposableStack();
    undo.defer(() => memory.releaseDomain(domid));
    if (!this.#cloned.has(domid) && !this.#heldPages.has(domid)) {
      this.#heldPages.set(domid, xen.domainInfo(domid)?.totalPages ?? 0n);
    }
    await this.#subscribe(domid);

    // A clone's absent pages must not be looked at: to map one calls for it.
    const walk = this.#cloned.has(domid) ? undefined : undo.use(this.#freePages?.begin(domid, shape.memory.map));

    const started = clock.nowMs();
    xen.logDirtyEnable(domid);
    undo.defer(() => logDirtyOff(xen, domid));
    undo.defer(() => this.#resumeIfSuspended(domid));
    await this.#suspend(domid, options.suspendTimeoutMs);
    const suspended = clock.nowMs();

    const context = xen.hvmContext(domid);
    const hot = dirtyPages(xen, domid, shape.memory.map);
    const descriptor: Descriptor = {
      ...shape,
      tsc: xen.tscInfo(domid),
      snapshot: options.snapshot,
      family: options.family,
      parentName,
      context,
      params: copiedParams(xen, domid),
      identPt: identityPageTable(this.#ports.foreignMemory, domid, shape),
      hot,
      free: walk?.find(context) ?? new Uint32Array(),
    };
    // What it has mapped could not be nominated.
    walk?.[Symbol.dispose]();
    await options.whileSuspended?.();
    const captured = clock.nowMs();

    const snapshot = await memory.takeSnapshot(options.snapshot, domid, {
      hot,
      free: descriptor.free,
      frozen: options.frozen,
    });
    const nominated = clock.nowMs();
    undo.defer(() => memory.releaseSnapshot(options.snapshot));
    logDirtyOff(xen, domid);
    if (options.frozen) this.#frozen.add(domid);
    else await this.#resume(domid);
    const resumed = clock.nowMs();
    undo.move();
    return {
      descriptor,
      snapshot,
      times: {
        suspendMs: suspended - started,
        captureMs: captured - suspended,
        nominateMs: nominated - captured,
        resumeMs: resumed - nominated,
        pauseMs: resumed - started,
      },
    };
  }

  /** Parents that have ended, or shut down, are let go; where their memory still is there, their clones keep it. */
  async sweep(): Promise<void> {
    const { xen, memory, clock } = this.#ports;
    for (const [domid, untilMs] of this.#late) {
      if (clock.nowMs() > untilMs) this.#late.delete(domid);
      else await this.onSuspended(domid);
    }
    for (const domid of [...this.#held, ...this.#recovering.keys()]) {
      const info = xen.domainInfo(domid);
      const gone = info === undefined || info.dying;
      if (!gone && !(info.shutdown && info.shutdownReason !== SUSPEND)) continue;
      this.#frozen.delete(domid);
      await memory.closeDomain(domid, !gone);
    }
  }

  /** Resolves when no parent is held any more: every snapshot has ended, and its pages are the guests' own again. */
  async settle(): Promise<void> {
    const { memory } = this.#ports;
    await Promise.all([...this.#held, ...this.#recovering.keys()].map(async (domid) => {
      const released = memory.released(domid);
      await memory.releaseDomain(domid);
      await released;
    }));
  }

  /** Whether there is such a domain, and it is not about to end. */
  exists(domid: Domid): boolean {
    const info = this.#ports.xen.domainInfo(domid);
    return info !== undefined && !info.dying;
  }

  isFrozen(domid: Domid): boolean {
    return this.#frozen.has(domid);
  }

  /** Lets a template run again. */
  async thaw(domid: Domid): Promise<void> {
    if (!this.#frozen.delete(domid)) return;
    await this.#resumeIfSuspended(domid);
  }

  /** After a restart of the agent, for a parent that an earlier one held: it runs, and can be forked once it is `released`. */
  async recover(domid: Domid, released: Promise<void>): Promise<void> {
    const done = released.catch((error) => this.#log.error("a parent's memory was not released", { domid, error }))
      .finally(() => this.#recovering.delete(domid));
    this.#recovering.set(domid, done);
    await this.#cancelSuspend(domid);
    await this.#resumeIfSuspended(domid);
    logDirtyOff(this.#ports.xen, domid);
  }

  async #hold(domid: Domid, shape: GuestShape, ring: Gfn): Promise<void> {
    const { xen, memory, holds } = this.#ports;
    const uuid = uuidText(xen.domainInfo(domid)?.handle ?? new Uint8Array(16));
    const ranges = shape.memory.map.ranges.map(({ first, pages }): [string, number] => [`${first}`, pages]);
    this.#holding.add(domid);
    holds.addParent({ domid, uuid, ring: `${ring}`, ranges });
    try {
      await memory.openDomain(domid, shape.memory.map.ranges, ring, false);
    } catch (error) {
      if (!this.#held.has(domid)) holds.removeParent(uuid);
      throw error;
    } finally {
      this.#holding.delete(domid);
    }
    if (this.#held.has(domid)) return;
    this.#held.add(domid);
    memory.released(domid).then(async () => {
      this.#held.delete(domid);
      // Unless its next fork has just begun.
      if (!this.#holding.has(domid)) holds.removeParent(uuid);
      await this.forget(domid);
    }).catch((error) => this.#log.error("a parent's memory was not released", { domid, error }));
  }

  async #subscribe(domid: Domid): Promise<void> {
    if (this.#suspendPorts.has(domid)) return;
    const { xen, memory } = this.#ports;
    // Signalled instead of xenstored's announcement: xl's monitor of the parent would take that for the guest's end.
    const remote = xen.allocateUnbound(domid, DOM0);
    this.#suspendPorts.set(domid, await memory.watchSuspend(domid, remote));
    xen.subscribeSuspend(domid, remote);
  }

  async #suspend(domid: Domid, timeoutMs: number): Promise<void> {
    const { xen, store, clock } = this.#ports;
    const path = `${domainPath(domid)}/control/shutdown`;
    const deadline = clock.nowMs() + timeoutMs;
    this.#late.delete(domid);
    await store.write(path, "suspend");
    try {
      while (true) {
        const fired = new Promise<void>((resolve) => this.#waiting.set(domid, resolve));
        const info = xen.domainInfo(domid);
        if (info === undefined || info.dying) {
          throw new EngineError("ended", `Domain ${domid} ended while it was forked`);
        }
        if (info.shutdown) {
          if (info.shutdownReason === SUSPEND) return;
          throw new EngineError("cannot-suspend", `Domain ${domid} shut down instead of suspending`);
        }
        const leftMs = deadline - clock.nowMs();
        if (leftMs <= 0) {
          throw new EngineError(
            "cannot-suspend",
            `Domain ${domid} did not suspend in ${timeoutMs} ms; its kernel needs Xen PV support. It runs on`,
          );
        }
        await Promise.race([fired, clock.sleep(Math.min(leftMs, 250))]);
      }
    } catch (error) {
      await this.#cancelSuspend(domid);
      throw error;
    } finally {
      this.#waiting.delete(domid);
    }
  }

  /** A guest that has read the request already suspends all the same, later: {@link sweep} lets it go on. */
  async #cancelSuspend(domid: Domid): Promise<void> {
    this.#late.set(domid, this.#ports.clock.nowMs() + LATE_SUSPEND_MS);
    await this.#ports.store.write(`${domainPath(domid)}/control/shutdown`, "");
  }

  async #resumeIfSuspended(domid: Domid): Promise<void> {
    const info = this.#ports.xen.domainInfo(domid);
    if (info !== undefined && !info.dying && info.shutdown && info.shutdownReason === SUSPEND) {
      await this.#resume(domid);
    }
  }

  /** "Suspend cancelled" (xg_resume.c): the hypercall that suspended returns 1, and the guest keeps its devices. */
  async #resume(domid: Domid): Promise<void> {
    const { xen, store } = this.#ports;
    const context = xen.vcpuContext(domid, 0);
    new DataView(context.buffer, context.byteOffset).setBigUint64(CONTEXT_RAX, 1n, true);
    xen.setVcpuContext(domid, 0, context);
    xen.resumeDomain(domid);
    await store.resume(domid);
  }
}
