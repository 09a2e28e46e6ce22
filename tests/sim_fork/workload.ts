/** What runs in a guest: programs that fill pages with patterns and look whether every page still holds what it should. */
import { LAYOUT, type PatternPage, type Program, type RamRange, type SimGuest, type SimXen } from "../sim/mod.ts";

/** Pages that a program handles before others get their turn. */
const PAGES_A_STEP = 32;
const SUSPEND = 2;

export class Workload {
  readonly guest: SimGuest;
  readonly ram: readonly RamRange[];
  /** What the guest wrote, by gfn: all other pages hold zeros. */
  readonly written: Map<number, PatternPage>;
  /** The same at its last suspend: what clones start with. */
  atSuspend: ReadonlyMap<number, PatternPage> | undefined;
  /** Pages that did not hold what was written to them. */
  readonly faults: string[] = [];
  readonly #xen: SimXen;
  #suspended = false;

  constructor(
    xen: SimXen,
    guest: SimGuest,
    ram: readonly RamRange[],
    written: ReadonlyMap<number, PatternPage> = new Map(),
  ) {
    this.#xen = xen;
    this.guest = guest;
    this.ram = ram;
    this.written = new Map(written);
  }

  get domid(): number {
    return this.guest.domid;
  }

  /** Pages that programs may use. */
  get pages(): number[] {
    return this.ram.flatMap(({ first, pages }, index) => {
      const kernel = index === 0 ? LAYOUT.user : 0;
      return Array.from({ length: pages - kernel }, (_, at) => first + kernel + at);
    });
  }

  /** To be called whenever the guest has run, before anything else does. */
  noteSuspend(): void {
    const suspended = this.#xen.find(this.domid)?.shutdownCode === SUSPEND;
    if (suspended && !this.#suspended) this.atSuspend = new Map(this.written);
    this.#suspended = suspended;
  }

  *fill(vcpu: number, gfns: readonly number[], page: PatternPage): Program {
    for (const [at, gfn] of gfns.entries()) {
      yield* this.guest.fill(vcpu, gfn, page);
      this.written.set(gfn, page);
      if (at % PAGES_A_STEP === PAGES_A_STEP - 1) yield;
    }
  }

  /** Reads pages, all if none are named, and notes each that is not what it should be. */
  *verify(vcpu: number, gfns: readonly number[] = this.pages): Program {
    for (const [at, gfn] of gfns.entries()) {
      const found = yield* this.guest.verify(vcpu, gfn);
      const expected = this.written.get(gfn) ?? "zero";
      if (text(found) !== text(expected)) {
        this.faults.push(`domain ${this.domid}, page 0x${gfn.toString(16)}: ${text(found)}, not ${text(expected)}`);
      }
      if (at % PAGES_A_STEP === PAGES_A_STEP - 1) yield;
    }
  }

  /** Rewrites some of its pages for ever, each time with another pattern. */
  *churn(vcpu: number, gfns: readonly number[], seed: number): Program {
    for (let round = 1;; round++) {
      for (const [at, gfn] of gfns.entries()) {
        yield* this.fill(vcpu, [gfn], { seed, round });
        if (at % 4 === 3) yield;
      }
      yield;
    }
  }
}

function text(page: PatternPage | "zero" | "wrong"): string {
  return typeof page === "string" ? page : `seed ${page.seed} round ${page.round}`;
}
