import assert from "node:assert/strict";
import { TokenBucket } from "./token_bucket.ts";

Deno.test("a burst, then the rate", () => {
  const bucket = new TokenBucket(4, 3, 1000);
  assert.deepEqual([1, 2, 3].map(() => bucket.take(1000)), [0, 0, 0]);
  assert.equal(bucket.take(1000), 250);
  assert.equal(bucket.take(1100), 150);
  assert.equal(bucket.take(1250), 0);
  assert.equal(bucket.take(1250), 250);
  // A long rest fills it to the burst and no further; time that goes back is no time.
  assert.deepEqual([1, 2, 3, 4].map(() => bucket.take(1e9)), [0, 0, 0, 250]);
  assert.equal(bucket.take(0), 250);
});

Deno.test("whoever sleeps the time given is served", () => {
  const bucket = new TokenBucket(3, 1, 0);
  let nowMs = 0;
  for (let n = 0; n < 100; n++) {
    const waitMs = bucket.take(nowMs);
    if (waitMs === 0) continue;
    nowMs += waitMs;
    assert.equal(bucket.take(nowMs), 0);
  }
});
