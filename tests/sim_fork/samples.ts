/** Which steps of a fork a test tries: some every time, and as many of the others as there is time for. */

export interface Samples {
  readonly steps: Iterable<number>;
  /** To be printed by a run that fails, and to be given again as `SIM_FORK_SEED`. */
  readonly seed: number;
}

/**
 * `always`, then every `stride`-th of 1..`last` from an offset that changes from run to run, until `budgetMs` are over. The seed, if
 * given, is the offset.
 */
export function sampleSteps(last: number, stride: number, budgetMs: number, always: readonly number[] = []): Samples {
  const given = Number(Deno.env.get("SIM_FORK_SEED") ?? Number.NaN);
  const seed = Number.isInteger(given) ? given : Date.now() % stride;
  return {
    seed,
    steps: (function* () {
      yield* always;
      const end = performance.now() + budgetMs;
      const done = new Set(always);
      for (let step = 1 + seed % stride; step <= last && performance.now() < end; step += stride) {
        if (!done.has(step)) yield step;
      }
    })(),
  };
}
