import assert from "node:assert/strict";
import { Pace } from "./pace.ts";
import { randomOf } from "./sim_network.ts";

const PACKET = 1433;

/** Sends for `seconds` through a link that takes `capacity` bytes a second and loses `ownLoss` besides; the goodput of the last half. */
function drive(pace: Pace, options: { capacity: number; ownLoss: number; seconds: number; seed?: number }): number {
  const random = randomOf(options.seed ?? 1);
  let credit = 0;
  let delivered = 0;
  for (let ms = 0; ms < options.seconds * 1000; ms++) {
    credit = Math.min(credit + options.capacity / 1000, options.capacity * 0.02);
    let heard = 0;
    let lost = 0;
    while (pace.ready(ms)) {
      pace.spend(PACKET);
      if (credit < PACKET || random() < options.ownLoss) lost++;
      else heard++;
      if (credit >= PACKET) credit -= PACKET;
    }
    pace.report(heard, lost, ms);
    if (ms >= options.seconds * 500) delivered += heard * PACKET;
  }
  return delivered / (options.seconds / 2);
}

const OPTIONS = { initialRate: 60e6, minRate: 250e3, maxRate: 1.25e9 };

Deno.test("without loss the rate grows to its limit", () => {
  const pace = new Pace({ ...OPTIONS, maxRate: 300e6 });
  drive(pace, { capacity: 1e9, ownLoss: 0, seconds: 1 });
  assert.equal(pace.rate, 300e6);
  assert.equal(pace.cuts, 0);
});

for (const capacity of [10e6, 100e6]) {
  Deno.test(`a link of ${capacity / 1e6} MB/s is filled, and not for long overrun`, () => {
    const pace = new Pace(OPTIONS);
    const goodput = drive(pace, { capacity, ownLoss: 0, seconds: 6 });
    assert(goodput > capacity * 0.75, `${goodput}`);
    assert(pace.rate < capacity * 1.5, `${pace.rate}`);
    assert(pace.cuts > 0);
  });
}

for (const ownLoss of [0.01, 0.05, 0.2]) {
  Deno.test(`loss of ${ownLoss * 100} % that cuts do not change does not bring the rate down`, () => {
    const pace = new Pace({ ...OPTIONS, maxRate: 120e6 });
    const goodput = drive(pace, { capacity: 1e9, ownLoss, seconds: 4 });
    assert(goodput > 120e6 * (1 - ownLoss) * 0.8, `${goodput}`);
    assert(Math.abs(pace.ownLoss - ownLoss) < ownLoss, `${pace.ownLoss}`);
  });
}

Deno.test("a full link that loses 2 % besides is filled still, and not overrun for ever", () => {
  for (let seed = 1; seed <= 10; seed++) {
    const pace = new Pace(OPTIONS);
    const goodput = drive(pace, { capacity: 50e6, ownLoss: 0.02, seconds: 8, seed });
    assert(goodput > 50e6 * 0.65, `seed ${seed}: ${goodput}`);
    assert(pace.rate < 50e6 * 2, `seed ${seed}: ${pace.rate}`);
  }
});

Deno.test("the bucket lets no more than its rate through", () => {
  const pace = new Pace({ initialRate: 1e6, minRate: 1e6, maxRate: 1e6 });
  let sent = 0;
  for (let ms = 0; ms < 1000; ms++) {
    while (pace.ready(ms)) {
      pace.spend(PACKET);
      sent += PACKET;
    }
    assert(pace.waitMs() >= 0);
  }
  assert(sent > 0.95e6 && sent < 1.05e6, `${sent}`);
});
