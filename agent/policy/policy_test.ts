import assert from "node:assert/strict";
import fc from "fast-check";
import { EngineError } from "../api/engine.ts";
import { external, policyOf, spread } from "./mod.ts";

const rooms = new Map([["a", 3], ["b", 0], ["c", 10]]);

Deno.test("spread: one a host, round after round, never more than there is room for", async () => {
  assert.deepEqual(await spread.allocate("t", 5, rooms), new Map([["a", 3], ["c", 2]]));
  assert.deepEqual(await spread.allocate("t", 20, rooms), new Map([["a", 3], ["c", 10]]));
  await fc.assert(fc.asyncProperty(fc.nat(1000), fc.array(fc.nat(200), { maxLength: 20 }), async (wanted, counts) => {
    const rooms = new Map(counts.map((room, at) => [`h${at}`, room]));
    for (const policy of [spread, policyOf("pack")]) {
      const placed = await policy.allocate("t", wanted, rooms);
      const sum = [...placed.values()].reduce((sum, count) => sum + count, 0);
      assert.equal(sum, Math.min(wanted, counts.reduce((sum, room) => sum + room, 0)));
      for (const [host, count] of placed) assert(count > 0 && count <= (rooms.get(host) ?? 0));
    }
    const even = await spread.allocate("t", wanted, rooms);
    const largest = Math.max(0, ...even.values());
    for (const [host, room] of rooms) assert((even.get(host) ?? 0) >= Math.min(room, largest - 1));
  }));
});

function shell(script: string, timeoutMs?: number) {
  return external(["sh", "-c", script], timeoutMs);
}

function fails(work: Promise<unknown>, message: RegExp): Promise<void> {
  return assert.rejects(work, (error) => {
    assert(error instanceof EngineError && error.code === "failed", String(error));
    assert.match(error.message, message);
    return true;
  });
}

Deno.test("external: the program is told and answers; it learns of the ticket's end", async () => {
  const seen = await Deno.makeTempFile();
  try {
    const policy = shell(`cat >> ${seen}; echo '{"placement": {"c": 4, "a": 1, "b": 0}}'`);
    assert.deepEqual(await policy.allocate("t1", 5, rooms), new Map([["c", 4], ["a", 1]]));
    await policy.release("t1");
    const calls = (await Deno.readTextFile(seen)).trim().split("\n").map((line) => JSON.parse(line));
    const hosts = [{ name: "a", room: 3 }, { name: "b", room: 0 }, { name: "c", room: 10 }];
    assert.deepEqual(calls, [{ call: "allocate", ticket: "t1", wanted: 5, hosts }, { call: "release", ticket: "t1" }]);
  } finally {
    await Deno.remove(seen);
  }
});

Deno.test("external: an answer that cannot be used says why", async () => {
  const answers: [string, RegExp][] = [
    ["echo hello", /no JSON: "hello\\n"/],
    ["true", /no JSON/],
    [`echo '{"placement": {"a": 4}}'`, /4 clones on a, which has room for 3/],
    [`echo '{"placement": {"z": 1}}'`, /cannot be used: z/],
    [`echo '{"placement": {"a": -1}}'`, /placement\.a/],
    [`echo '{"placement": {"a": 1.5}}'`, /placement\.a/],
    [`echo '{"placement": {"a": 3, "c": 3}}'`, /placed 6 clones of 5/],
    [`echo '{"hosts": {}}'`, /cannot be used/],
    ["echo no licence >&2; exit 3", /sh ended with status 3: no licence/],
  ];
  for (const [script, message] of answers) await fails(shell(script).allocate("t", 5, rooms), message);
  await fails(external(["/no/such/program"]).allocate("t", 5, rooms), /Cannot run \/no\/such\/program/);
  await assert.rejects(shell("exit 1").release("t"), /status 1/);
});

Deno.test("external: a program that hangs, or talks without end, is stopped with all that it started", async () => {
  const pidFile = await Deno.makeTempFile();
  try {
    const began = performance.now();
    await fails(
      shell(`sleep 60 & echo $! > ${pidFile}; sleep 60`, 300).allocate("t", 5, rooms),
      /did not end within 300 ms/,
    );
    assert(performance.now() - began < 5000);
    const pid = (await Deno.readTextFile(pidFile)).trim();
    assert.equal(await running(pid), false);
    await fails(shell("yes").allocate("t", 5, rooms), /wrote more than/);
    await fails(shell("yes >&2").allocate("t", 5, rooms), /wrote more than .* errors/);
  } finally {
    await Deno.remove(pidFile);
  }
});

/** Whether a process is there and has not ended. */
async function running(pid: string): Promise<boolean> {
  const { stdout } = await new Deno.Command("ps", { args: ["-o", "stat=", "-p", pid] }).output();
  return /^[^Z\s]/.test(new TextDecoder().decode(stdout));
}
