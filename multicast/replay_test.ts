import assert from "node:assert/strict";
import fc from "fast-check";
import { REPLAY_WINDOW, ReplayWindow } from "./replay.ts";

Deno.test("a counter is taken once, in any order", () => {
  fc.assert(
    fc.property(fc.array(fc.integer({ min: 1, max: 3 * REPLAY_WINDOW }), { maxLength: 300 }), (counters) => {
      const window = new ReplayWindow();
      const taken = new Set<number>();
      let highest = 0;
      for (const counter of counters) {
        const fresh = window.fresh(counter);
        if (taken.has(counter)) assert(!fresh, `${counter} twice`);
        else assert.equal(fresh, counter > highest - REPLAY_WINDOW, `${counter} below ${highest}`);
        if (!fresh) continue;
        window.take(counter);
        taken.add(counter);
        highest = Math.max(highest, counter);
      }
    }),
    { seed: 3, numRuns: 300 },
  );
});

Deno.test("asking takes nothing", () => {
  const window = new ReplayWindow();
  assert(window.fresh(5));
  assert(window.fresh(5));
  window.take(5);
  assert(!window.fresh(5));
  assert(window.fresh(2 ** 48 - 1));
});
