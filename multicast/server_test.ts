import assert from "node:assert/strict";
import type { Range } from "./codec.ts";
import { DEFAULT_PACE } from "./pace.ts";
import { ALL_FRAGMENTS, RequestFlag } from "./protocol.ts";
import { DEFAULT_SERVER, type Job, Server, type ServerOptions } from "./server.ts";

const A = { ip: 1, port: 1 };
const B = { ip: 2, port: 1 };

function newServer(options: Partial<ServerOptions> = {}): { server: Server<string>; slot: number } {
  const server = new Server<string>({ ...DEFAULT_SERVER, pace: DEFAULT_PACE, ...options });
  return { server, slot: server.add("object", 10_000) };
}

function request(ranges: Range[], options: { flags?: number; highest?: number; received?: number } = {}) {
  return { flags: options.flags ?? 0, highest: options.highest ?? 0, received: options.received ?? 0, ranges };
}

function range(index: number, count = 1, mask = ALL_FRAGMENTS): Range {
  return { index, count, mask };
}

/** Takes all jobs; each stream job is one packet. "index:mask", with the endpoint's ip where it is unicast. */
function drain(server: Server<string>, nowMs: number): string[] {
  const job: Job<string> = { handle: "", slot: 0, index: 0, mask: 0, unicast: undefined };
  const jobs = [];
  while (server.next(job)) {
    if (job.unicast === undefined) server.nextSequence();
    server.sent(job, nowMs);
    jobs.push(`${job.index}:${job.mask}${job.unicast === undefined ? "" : `>${job.unicast.ip}`}`);
  }
  return jobs;
}

Deno.test("two receivers in lockstep are answered once", () => {
  const { server, slot } = newServer();
  server.request(slot, request([range(0, 3)]), 1, A, 0);
  server.request(slot, request([range(0, 3)]), 2, B, 0);
  assert.deepEqual(drain(server, 0), ["0:127", "1:127", "2:127"]);
  server.request(slot, request([range(1, 2)]), 3, B, 1);
  assert.deepEqual(drain(server, 1), []);
  assert.equal(server.stats.merged, 3);
  assert.equal(server.stats.suppressed, 2);
});

Deno.test("a receiver that has seen the stream beyond a block gets it again, others do not", () => {
  const { server, slot } = newServer();
  server.request(slot, request([range(0, 5)]), 1, A, 0);
  drain(server, 0);
  server.request(slot, request([range(1, 1, 2)], { highest: 1 }), 1, A, 5);
  assert.deepEqual(drain(server, 5), [], "block 1 went as packet 2, which the receiver has not come to");
  server.request(slot, request([range(1, 1, 2)], { highest: 4 }), 1, A, 5);
  assert.deepEqual(drain(server, 5), ["1:2"]);
  // The repair was of fragment 1: another's fragment 0 is no part of it.
  server.request(slot, request([range(1, 1, 3)], { highest: 5 }), 2, B, 6);
  assert.deepEqual(drain(server, 6), ["1:1"]);
});

Deno.test("a receiver that hears nothing is answered again after a while", () => {
  const { server, slot } = newServer();
  server.request(slot, request([range(7)]), 1, A, 0);
  drain(server, 0);
  server.request(slot, request([range(7)]), 1, A, 100);
  assert.deepEqual(drain(server, 100), []);
  server.request(slot, request([range(7)]), 1, A, 200);
  assert.deepEqual(drain(server, 200), ["7:127"]);
});

Deno.test("urgent blocks overtake, and are not sent again in their old place", () => {
  const { server, slot } = newServer();
  server.request(slot, request([range(0, 4)]), 1, A, 0);
  server.request(slot, request([range(3), range(9)], { flags: RequestFlag.Urgent }), 2, B, 0);
  assert.deepEqual(drain(server, 0), ["3:127", "9:127", "0:127", "1:127", "2:127"]);
});

Deno.test("stragglers are answered by unicast, behind urgent and before background blocks", () => {
  const { server, slot } = newServer();
  server.request(slot, request([range(0)]), 1, A, 0);
  server.request(slot, request([range(5, 2)], { flags: RequestFlag.Unicast }), 2, B, 0);
  server.request(slot, request([range(9)], { flags: RequestFlag.Urgent }), 1, A, 0);
  assert.deepEqual(drain(server, 0), ["9:127", "5:127>2", "6:127>2", "0:127"]);
});

Deno.test("at its bounds it refuses and counts, and serves what it took", () => {
  const { server, slot } = newServer({ maxQueued: 256, maxUnicast: 3 });
  server.request(slot, request([range(0, 400)]), 1, A, 0);
  assert.equal(server.stats.refused, 144);
  server.request(slot, request([range(500, 10)], { flags: RequestFlag.Unicast }), 1, A, 0);
  assert.equal(server.stats.refused, 151);
  assert.equal(drain(server, 0).length, 259);
  assert.equal(server.queued, 0);
});

Deno.test("blocks beyond the object are counted and ignored; a removed object is served no more", () => {
  const { server, slot } = newServer();
  server.request(slot, request([range(9998, 5), range(20_000)]), 1, A, 0);
  assert.equal(server.stats.outside, 4);
  server.remove(slot);
  assert.deepEqual(drain(server, 0), []);
  server.request(slot, request([range(0)]), 1, A, 0);
  assert.deepEqual(drain(server, 0), []);
});

Deno.test("receivers are known up to a bound, and lapse when they are silent", () => {
  const { server, slot } = newServer({ mode: "unicast", maxReceivers: 2 });
  for (const sender of [1, 2, 3]) server.request(slot, request([]), sender, { ip: sender, port: 1 }, 0);
  assert.deepEqual(server.fanOut(0).map(({ ip }) => ip), [1, 2]);
  server.request(slot, request([]), 2, { ip: 2, port: 9 }, 9000);
  assert.deepEqual(server.fanOut(11_000), [{ ip: 2, port: 9 }]);
});

Deno.test("multicast goes by unicast only to those that ask for it", () => {
  const { server, slot } = newServer();
  server.request(slot, request([]), 1, A, 0);
  server.request(slot, request([], { flags: RequestFlag.FanOut }), 2, B, 0);
  assert.deepEqual(server.fanOut(0), [B]);
  server.request(slot, request([]), 2, B, 1);
  assert.deepEqual(server.fanOut(1), []);
});

Deno.test("loss is what the reports of one receiver lack; lies about the future count for nothing", () => {
  const { server, slot } = newServer();
  server.request(slot, request([range(0, 2000)]), 1, A, 0);
  drain(server, 0);
  server.request(slot, request([], { highest: 100, received: 100 }), 1, A, 1);
  server.request(slot, request([], { highest: 1100, received: 1000 }), 1, A, 20);
  assert.equal(server.pace.loss, 0.1);
  server.request(slot, request([], { highest: 4_000_000, received: 1000 }), 1, A, 40);
  assert.equal(server.pace.loss, 0.1);
});

Deno.test("the end of the stream is told three times, later each time", () => {
  const { server, slot } = newServer();
  assert.equal(server.idle(1000), false, "nothing was sent yet");
  server.request(slot, request([range(0)]), 1, A, 0);
  drain(server, 10);
  const told = [];
  for (let ms = 10; ms < 500; ms++) if (server.idle(ms)) told.push(ms - 10);
  assert.deepEqual(told, [1, 8, 60]);
  assert.equal(server.deadlineMs(500), undefined);
});
