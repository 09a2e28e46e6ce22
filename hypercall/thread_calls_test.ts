import { deepEqual, equal, ok, rejects, throws } from "node:assert/strict";
import {
  CallQueue,
  type CallQueueOptions,
  CallServer,
  ThreadCallError,
  withTransfer,
  workerEndpoint,
} from "./thread_calls.ts";
import type { Service } from "./thread_calls_test_worker.ts";

/** A Worker that serves, and its queue; both end with it. */
function started(options: CallQueueOptions = {}) {
  const worker = new Worker(new URL("./thread_calls_test_worker.ts", import.meta.url), { type: "module" });
  const queue = new CallQueue<Service>(worker, options);
  return {
    worker,
    queue,
    calls: queue.calls,
    [Symbol.dispose]() {
      queue[Symbol.dispose]();
      worker.terminate();
    },
  };
}

/** Stands for an eventfd: wakes a thread that waits on shared memory. */
function sharedWakeup() {
  const memory = new Int32Array(new SharedArrayBuffer(4));
  return {
    memory,
    signal() {
      Atomics.store(memory, 0, 1);
      Atomics.notify(memory, 0);
    },
  };
}

Deno.test("calls return results, of methods plain and async, each to its own caller", async () => {
  using thread = started();
  equal(await thread.calls.add(2, 3), 5);
  const order: string[] = [];
  await Promise.all([
    thread.calls.later("slow", 20).then((value) => order.push(value)),
    thread.calls.later("fast", 1).then((value) => order.push(value)),
  ]);
  deepEqual(order, ["fast", "slow"]);
  equal(thread.queue.pending, 0);
});

Deno.test("an error crosses with its name, message and code", async () => {
  using thread = started();
  await rejects(thread.calls.pause(7), (error: ThreadCallError) => {
    ok(error instanceof ThreadCallError);
    deepEqual([error.name, error.code], ["XenError", "ESRCH"]);
    equal(error.message, "Cannot pause domain 7: ESRCH (no such domain)");
    return true;
  });
  await rejects(thread.calls.unclonable(), { name: "DataCloneError" });
  const wrong = new CallQueue<{ toString(): string; nothing(): void }>(thread.worker);
  await rejects(wrong.calls.nothing(), { message: "there is no method nothing" });
  equal(await thread.calls.add(1, 1), 2);
});

Deno.test("buffers are moved where they are marked", async () => {
  using thread = started();
  const buffer = new ArrayBuffer(4096);
  new Uint8Array(buffer)[5] = 7;
  const back = await thread.calls.move(withTransfer(buffer, [buffer]));
  equal(buffer.detached, true);
  deepEqual([back.byteLength, new Uint8Array(back.buffer)[5]], [4096, 7]);
});

Deno.test("a thread that blocks is woken by each call, and its async methods go on", async () => {
  const wakeup = sharedWakeup();
  using thread = started({ wakeup });
  await thread.calls.block(wakeup.memory);
  for (let round = 0; round < 50; round++) equal(await thread.calls.add(round, 1), round + 1);
  deepEqual(
    await Promise.all(Array.from({ length: 200 }, (_, index) => thread.calls.add(index, index))),
    Array.from({ length: 200 }, (_, index) => 2 * index),
  );
  equal(await thread.calls.later("done", 5), "done");
  ok(await thread.calls.blocked() > 1);
});

Deno.test("calls under way are bounded", async () => {
  using thread = started({ pendingMax: 2 });
  const waiting = [thread.calls.never(), thread.calls.never()];
  await rejects(thread.calls.add(1, 1), { code: "ENOBUFS" });
  thread.queue[Symbol.dispose]();
  for (const call of waiting) await rejects(call, { code: "ECONNRESET" });
});

Deno.test("the death of a thread fails what waits and what comes after, and nothing else", async () => {
  using thread = started();
  const waiting = thread.calls.never();
  const crash = thread.calls.crash();
  await rejects(waiting, { code: "ECONNRESET", message: /failed: .*out of order/ });
  await crash.catch(() => undefined);
  await rejects(thread.calls.add(1, 1), { code: "ECONNRESET" });
  equal((await thread.queue.closed).code, "ECONNRESET");
});

Deno.test("a thread that ends says so", async () => {
  using thread = started();
  const ended = thread.calls.end();
  await rejects(thread.calls.never(), { code: "ECONNRESET" });
  await ended.catch(() => undefined);
  equal((await thread.queue.closed).message, "the other thread has ended");
});

Deno.test("arguments that cannot be sent fail their own call only", async () => {
  using thread = started();
  const queue = new CallQueue<{ add(left: () => void): number }>(thread.worker, { channel: "other" });
  await rejects(queue.calls.add(() => {}), { name: "DataCloneError" });
  equal(queue.pending, 0);
});

Deno.test("the main thread has no worker's end", () => {
  throws(() => workerEndpoint(), TypeError);
});

Deno.test("both ends of a port may serve, on channels of their own", async () => {
  const { port1, port2 } = new MessageChannel();
  const up = new CallServer(port2, { double: (value: number) => value * 2 }, { channel: "up" });
  const down = new CallServer(port1, { name: () => "main" }, { channel: "down" });
  const upward = new CallQueue<{ double(value: number): number }>(port1, { channel: "up" });
  const downward = new CallQueue<{ name(): string }>(port2, { channel: "down" });
  equal(await upward.calls.double(21), 42);
  equal(await downward.calls.name(), "main");
  equal(up.busy || down.busy, false);
  port1.close();
  port2.close();
});
