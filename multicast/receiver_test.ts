import assert from "node:assert/strict";
import { ALL_FRAGMENTS } from "./protocol.ts";
import { DEFAULT_RECEIVER, Receiver, type ReceiverOptions } from "./receiver.ts";
import { RoundTrip } from "./round_trip.ts";

function newReceiver(blocks = 5000, options: Partial<ReceiverOptions> = {}): Receiver {
  return new Receiver(blocks, () => ALL_FRAGMENTS, { ...DEFAULT_RECEIVER, ...options });
}

function upTo(count: number): number[] {
  return Array.from({ length: count }, (_, at) => at);
}

/** "u" urgent, "b" background; "!" by unicast; then the ranges. */
function asks(receiver: Receiver, nowMs: number, timers = true): string[] {
  return receiver.poll(nowMs, timers).map(({ urgent, unicast, ranges }) =>
    `${urgent ? "u" : "b"}${unicast ? "!" : ""} ${ranges.map(({ index, count }) => `${index}+${count}`).join(" ")}`
  );
}

function arrive(receiver: Receiver, index: number, nowMs: number): void {
  receiver.fragment(index, true, nowMs);
  receiver.arrived(index, nowMs);
}

Deno.test("background blocks are asked for in ranges, within the window, in steps", () => {
  const receiver = newReceiver(5000, { window: 1000 });
  receiver.request(upTo(3000), false, 0);
  assert.deepEqual(asks(receiver, 0), ["b 0+1000"]);
  for (let index = 0; index < 127; index++) arrive(receiver, index, 1);
  assert.deepEqual(asks(receiver, 1), []);
  arrive(receiver, 127, 1);
  assert.deepEqual(asks(receiver, 1), ["b 1000+128"]);
  assert.equal(receiver.left, 3000 - 128);
});

Deno.test("an urgent block is asked for at once, and again by unicast with a growing timeout", () => {
  const receiver = newReceiver();
  receiver.request([7], true, 100);
  assert.deepEqual(asks(receiver, 100, false), ["u 7+1"]);
  const sent = [];
  for (let ms = 100; ms < 500; ms++) if (asks(receiver, ms).includes("u! 7+1")) sent.push(ms - 100);
  assert.deepEqual(sent, [20, 60, 140, 300]);
  assert.equal(receiver.urgentTimeouts, 4);
});

Deno.test("a block that becomes urgent is not asked for as a background block too", () => {
  const receiver = newReceiver();
  receiver.request([1, 2, 3], false, 0);
  receiver.request([2], true, 0);
  assert.deepEqual(asks(receiver, 0), ["u 2+1", "b 1+1 3+1"]);
  assert.equal(receiver.left, 3);
});

Deno.test("urgent blocks beyond the bound wait in the queue", () => {
  const receiver = newReceiver(5000, { maxUrgent: 2 });
  receiver.request([1, 2, 3], true, 0);
  assert.deepEqual(asks(receiver, 0), ["u 1+2", "b 3+1"]);
});

Deno.test("what later blocks overtook is asked for again, without a timer", () => {
  const receiver = newReceiver();
  receiver.request(upTo(100), false, 0);
  asks(receiver, 0);
  for (let index = 3; index <= 12; index++) arrive(receiver, index, 1);
  assert.deepEqual(asks(receiver, 1, false), [], "it may be reordered");
  for (let index = 13; index <= 40; index++) arrive(receiver, index, 1);
  assert.deepEqual(asks(receiver, 1, false), ["b 0+3"]);
  assert.equal(receiver.stats.lossesSeen, 3);
});

Deno.test("when the stream has ended, the rest is asked for again; what was just asked for is not", () => {
  const receiver = newReceiver();
  receiver.request(upTo(50), false, 0);
  asks(receiver, 0);
  receiver.request([60], false, 19);
  for (let index = 0; index < 48; index++) arrive(receiver, index, 2);
  receiver.request([70], true, 19);
  asks(receiver, 19);
  receiver.streamEnded(20);
  assert.deepEqual(asks(receiver, 20), ["b! 48+2"], "so few are left that they come by unicast");
});

Deno.test("with no answer, timers ask again, ever later; blocks that go on coming put them off", () => {
  const receiver = newReceiver(5000, { endGame: 0 });
  receiver.request(upTo(20), false, 0);
  asks(receiver, 0);
  const sent: [number, string][] = [];
  for (let ms = 1; ms < 5000; ms++) for (const ask of asks(receiver, ms)) sent.push([ms, ask]);
  assert.deepEqual(sent.slice(0, 3), [[200, "b 0+20"], [600, "b 0+20"], [1400, "b! 0+20"]]);
  assert.deepEqual(asks(receiver, 100_000, false), [], "sockets are to be read first");
});

Deno.test("silence is told when it is long, and whenever it has doubled", () => {
  const receiver = newReceiver(5000, { stallMs: 1000 });
  assert.equal(receiver.silence(5000), undefined);
  receiver.request([1], false, 5000);
  const told = [];
  for (let ms = 5000; ms < 12_000; ms += 100) if (receiver.silence(ms) !== undefined) told.push(ms - 5000);
  assert.deepEqual(told, [1000, 2000, 4000]);
  arrive(receiver, 2, 12_000);
  assert.equal(receiver.silence(12_900), undefined);
  assert.equal(receiver.silence(13_000), 1000);
});

Deno.test("cancelled blocks are not asked for, and can be requested again", () => {
  const receiver = newReceiver();
  receiver.request(upTo(10), false, 0);
  receiver.cancel([0, 1, 2]);
  receiver.request([1], false, 0);
  assert.deepEqual(asks(receiver, 0), ["b 1+1 3+7"]);
  receiver.cancel(upTo(10));
  assert.equal(receiver.left, 0);
  assert.equal(receiver.deadlineMs(), undefined);
});

Deno.test("a block is accepted once, and again after it was requested again", () => {
  const receiver = newReceiver();
  assert(receiver.accepts(4));
  assert.equal(receiver.arrived(4, 0), false, "overheard");
  assert(!receiver.accepts(4) && !receiver.accepts(5000));
  receiver.request([4], false, 1);
  assert(receiver.accepts(4) && receiver.asked(4));
  assert.equal(receiver.arrived(4, 2), true);
  assert.throws(() => receiver.request([5000], false, 0), RangeError);
});

Deno.test("the timeout follows the round trip, and learns from repeated requests that it was too short", () => {
  const trip = new RoundTrip({ initialMs: 20, minMs: 4, maxMs: 1000 });
  assert.equal(trip.timeoutMs(), 20);
  for (let n = 0; n < 50; n++) trip.sample(1);
  assert.equal(trip.timeoutMs(), 4);
  assert.equal(trip.leastMs, 1);
  for (let n = 0; n < 10; n++) trip.atMost(50);
  assert(trip.timeoutMs() > 50, `${trip.timeoutMs()}`);
  assert.equal(trip.leastMs, 1);
});
