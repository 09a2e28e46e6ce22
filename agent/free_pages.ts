/** Which pages a parent's kernel holds free at a fork: the walk of its free lists, step by step around the suspend. */
import { getLogger } from "@logtape/logtape";
import { HVM_SAVE, HvmHwCpu, HvmSaveDescriptor } from "../hypercall/abi/mod.ts";
import type { Domid, ForeignMemoryPort } from "../hypercall/ports.ts";
import type { Xen } from "../hypercall/xen_api.ts";
import {
  ForeignGuestMemory,
  KernelLayouts,
  type PagingRegisters,
  readLayout,
  type RefusalReason,
  type Symbols,
  walkFreePages,
} from "./avoidance/mod.ts";
import type { FreePageFinder, FreeWalk } from "./fork/parent.ts";
import type { Store } from "./fork/store.ts";
import { domainPath, NODES, parseSymbols } from "./guest/nodes.ts";
import type { MemoryMap } from "./memory/memory_map.ts";

/** Frames that reading a kernel's BTF may take: 16 MiB of it, and the page tables. */
const LAYOUT_FRAMES = 8192;
/** A walk in the pause is given up after this long. */
const WALK_MS = 500;

type Layout = Extract<ReturnType<typeof readLayout>, { ok: true }>["layout"];

export interface FreePagesPorts {
  readonly xen: Xen;
  readonly foreignMemory: ForeignMemoryPort;
  readonly store: Store;
  readonly nowMs: () => number;
}

export class FreePages implements FreePageFinder {
  readonly #ports: FreePagesPorts;
  readonly #layouts = new KernelLayouts();
  readonly #kernels = new Map<Domid, { readonly symbols: Symbols; readonly layout: Layout }>();
  readonly #log = getLogger(["snowflock", "avoidance"]);
  /** Walks that told nothing, by reason. */
  readonly refusals = new Map<RefusalReason | "no symbols", number>();

  constructor(ports: FreePagesPorts) {
    this.#ports = ports;
  }

  /** Reads the kernel's layout while the guest runs: it is the slow part, and does not change. */
  async prepare(domid: Domid): Promise<void> {
    const text = await this.#ports.store.read(`${domainPath(domid)}/${NODES.symbols}`);
    if (text === undefined) return this.#refuse(domid, "no symbols", "the guest has not run `sf init`");
    const symbols: Symbols = parseSymbols(new TextEncoder().encode(text));
    const { xen, foreignMemory } = this.#ports;
    const registers = registersOf(xen.hvmContext(domid));
    if (registers === undefined) return;
    using memory = new ForeignGuestMemory(foreignMemory, domid, { maxFrames: LAYOUT_FRAMES });
    const read = readLayout(memory, { ...registers, symbols, budget: { frames: LAYOUT_FRAMES } }, this.#layouts);
    if (read.ok) this.#kernels.set(domid, { symbols, layout: read.layout });
    else this.#refuse(domid, read.reason, read.detail);
  }

  forget(domid: Domid): void {
    this.#kernels.delete(domid);
  }

  begin(domid: Domid, map: MemoryMap): FreeWalk | undefined {
    const kernel = this.#kernels.get(domid);
    if (kernel === undefined) return undefined;
    const { xen, foreignMemory, nowMs } = this.#ports;
    const maxFrames = Math.ceil(map.pages / 64) + LAYOUT_FRAMES;
    const memory = new ForeignGuestMemory(foreignMemory, domid, { maxFrames });
    const walk = (context: Uint8Array) => {
      const registers = registersOf(context);
      if (registers === undefined) return undefined;
      const endMs = nowMs() + WALK_MS;
      const budget = { frames: maxFrames, expired: () => nowMs() > endMs };
      return walkFreePages(memory, { ...registers, ...kernel, map, budget });
    };
    // The lists of a running guest may well be refused; its frames are mapped afterwards, and the code is warm.
    walk(xen.hvmContext(domid));
    return {
      find: (context) => {
        const found = walk(context);
        if (found === undefined) return new Uint32Array();
        if (found.ok) {
          const free: number[] = [];
          for (const { first, pages } of found.free.runs()) {
            for (let page = 0; page < pages; page++) free.push(first + page);
          }
          return Uint32Array.from(free);
        }
        this.#refuse(domid, found.reason, found.detail);
        return new Uint32Array();
      },
      [Symbol.dispose]: () => memory[Symbol.dispose](),
    };
  }

  #refuse(domid: Domid, reason: RefusalReason | "no symbols", detail: string): void {
    this.refusals.set(reason, (this.refusals.get(reason) ?? 0) + 1);
    this.#log.info("free pages cannot be told", { domid, reason, detail });
  }
}

/** CR3 and CR4 of the first vCPU in a saved context; undefined where there is none. */
function registersOf(context: Uint8Array): PagingRegisters | undefined {
  let at = 0;
  while (at + HvmSaveDescriptor.size <= context.length) {
    const { typecode, length } = HvmSaveDescriptor.decode(context, at);
    at += HvmSaveDescriptor.size;
    if (typecode === HVM_SAVE.CPU && length >= HvmHwCpu.size && at + length <= context.length) {
      const { cr3, cr4 } = HvmHwCpu.decode(context, at);
      return { cr3, cr4 };
    }
    if (typecode === HVM_SAVE.END) return undefined;
    at += length;
  }
  return undefined;
}
