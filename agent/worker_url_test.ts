import assert from "node:assert/strict";
import { workerUrl } from "./worker_url.ts";

Deno.test("a worker is found in the source tree and beside the bundle", () => {
  assert.equal(
    workerUrl("agent/memory/memory_worker", "file:///src/agent/worker_url.ts").href,
    "file:///src/agent/memory/memory_worker.ts",
  );
  assert.equal(
    workerUrl("agent/memory/memory_worker", "file:///run/abc/main.js").href,
    "file:///run/abc/memory_worker.js",
  );
  assert.equal(workerUrl("agent/disk/disk_worker").href, new URL("./disk/disk_worker.ts", import.meta.url).href);
});

Deno.test("a name that is no worker's is refused", () => {
  for (const name of ["", "agent/memory/memtap", "../x_worker", "/x_worker", "a/x_worker.ts"]) {
    assert.throws(() => workerUrl(name), RangeError, name);
  }
});
