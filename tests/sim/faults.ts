/** Faults that a test injects into what one process asks of the machine. */
import { errno } from "../../hypercall/errors.ts";

/** One thing that the process asked for: a hypercall, a mapping, a request to xenstored. */
export interface Step {
  /** From 1, over everything that the process asked for. */
  readonly number: number;
  /** Such as "domctl.createdomain", "memory_op.populate_physmap", "foreign.map", "xenstore.WRITE". */
  readonly name: string;
}

/** What becomes of a step: an errno instead of its work, the process' death before it, or after it. */
export type Fate = { readonly errno: Parameters<typeof errno>[0] } | "kill" | "kill-after" | undefined;

interface Plan {
  readonly operation: string;
  readonly errno: Parameters<typeof errno>[0];
  skip: number;
  left: number;
}

export class Faults {
  #steps = 0;
  readonly #plans: Plan[] = [];
  /** Asked before each step. */
  onStep: ((step: Step) => Fate) | undefined;
  /** Names of the steps so far, if a test wants to see them. */
  trace: string[] | undefined;

  get steps(): number {
    return this.#steps;
  }

  /** Lets the next `times` uses of the operation fail, after `skip` that succeed. Entries of a multicall count one by one. */
  failNext(
    operation: string,
    code: Parameters<typeof errno>[0],
    { skip = 0, times = 1 }: { readonly skip?: number; readonly times?: number } = {},
  ): void {
    this.#plans.push({ operation, errno: code, skip, left: times });
  }

  /** Of the step that begins now. */
  enter(name: string): Fate {
    this.#steps++;
    this.trace?.push(name);
    return this.onStep?.({ number: this.#steps, name }) ?? this.planned(name);
  }

  /** Of a part of a step (an entry of a multicall). */
  planned(name: string): Fate {
    for (const [index, plan] of this.#plans.entries()) {
      if (plan.operation !== name) continue;
      if (plan.skip > 0) {
        plan.skip--;
        continue;
      }
      if (--plan.left === 0) this.#plans.splice(index, 1);
      return { errno: plan.errno };
    }
    return undefined;
  }
}
