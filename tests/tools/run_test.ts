import assert from "node:assert/strict";
import { runChild } from "./child.ts";
import { parseJunit } from "./junit.ts";
import { runTests, summarize } from "./run.ts";
import { findTests, groupTests } from "./test_files.ts";

/** A project of its own in a temporary folder. */
async function project(files: Readonly<Record<string, string>>): Promise<AsyncDisposable & { root: string }> {
  const root = await Deno.makeTempDir({ prefix: "snowflock-run-" });
  for (const [path, text] of Object.entries({ "deno.json": "{}", ...files })) {
    await Deno.mkdir(`${root}/${path}`.replace(/\/[^/]*$/, ""), { recursive: true });
    await Deno.writeTextFile(`${root}/${path}`, text);
  }
  return { root, [Symbol.asyncDispose]: () => Deno.remove(root, { recursive: true }) };
}

Deno.test("files fall into their groups", () => {
  assert.deepEqual(
    groupTests([
      "./agent/a_test.ts",
      "./hypercall/native/b_test.ts",
      "./vdisk/native_c_test.ts",
      "./tests/lab/d_lab_test.ts",
    ]),
    {
      plain: ["./agent/a_test.ts"],
      native: ["./hypercall/native/b_test.ts", "./vdisk/native_c_test.ts"],
      lab: ["./tests/lab/d_lab_test.ts"],
    },
  );
});

Deno.test("a report is read case by case", () => {
  const cases = parseJunit(`<testsuites><testsuite name="./a_test.ts">
    <testcase name="a &lt;x&gt; &amp; &quot;q&quot;" classname="./a_test.ts" time="0.0"></testcase>
    <testcase name="b" classname="./a_test.ts"><skipped/></testcase>
    <testcase name="c" classname="./a_test.ts"><failure message="m">&lt;skipped/&gt;</failure></testcase>
    <testcase name="d" classname="./a_test.ts"/></testsuite></testsuites>`);
  assert.deepEqual(cases.map(({ name, result }) => [name, result]), [
    ['a <x> & "q"', "passed"],
    ["b", "skipped"],
    ["c", "failed"],
    ["d", "passed"],
  ]);
  assert.throws(() => parseJunit("<testcase></testcase>"), SyntaxError);
});

Deno.test("what really ran is counted: steps, skips, failures, files that cannot run", async () => {
  await using made = await project({
    "agent/a_test.ts": `
      Deno.test("one", async (t) => { await t.step("inner", () => {}); });
      Deno.test.ignore("left out", () => {});
      Deno.test("bad", () => { throw new Error("bad"); });
      Deno.test("ffi is denied", () => { if (Deno.permissions.querySync({ name: "ffi" }).state === "granted") throw 1; });`,
    "agent/broken_test.ts": `throw new Error("at import");`,
    "hypercall/native/n_test.ts": `
      Deno.test("ffi is there", () => { if (Deno.permissions.querySync({ name: "ffi" }).state !== "granted") throw 1; });`,
    "tests/lab/x_lab_test.ts": `Deno.test("lab", () => {});`,
  });
  const groups = findTests(made.root);
  const fast = await runTests(groups, "fast", { root: made.root });
  assert.equal(fast.passed, 4);
  assert.deepEqual(fast.skipped, ["./agent/a_test.ts: left out"]);
  assert.deepEqual(fast.failures, ["./agent/a_test.ts: bad", "./agent/broken_test.ts: ran no test (status 1)"]);
  assert.equal(summarize(fast).at(-1), "4 passed, 2 failed, 1 skipped");

  const all = await runTests({ ...groups, plain: [] }, "all", { root: made.root });
  assert.deepEqual(summarize(all), ["2 passed, 0 failed, 0 skipped"]);
});

Deno.test("a wrong type and an empty suite are failures", async () => {
  await using made = await project({ "agent/a_test.ts": `Deno.test("x", () => {}); export const n: number = "no";` });
  const tally = await runTests(findTests(made.root), "fast", { root: made.root });
  assert.equal(tally.passed, 1);
  assert.deepEqual(tally.failures, ["type check: status 1"]);
  const none = await runTests({ plain: [], native: [], lab: [] }, "all", { root: made.root });
  assert.deepEqual(summarize(none).at(-1), "0 passed, 1 failed, 0 skipped");
});

Deno.test("a child's whole group ends at its time limit and at an abort", async () => {
  await using made = await project({});
  const script = `sleep 300 & echo $! > grandchild; wait`;
  const gone = async () => {
    const pid = (await Deno.readTextFile(`${made.root}/grandchild`)).trim();
    const state = await Deno.readTextFile(`/proc/${pid}/stat`).catch(() => "");
    return state === "" || /\) Z /.test(state);
  };
  const timed = await runChild("sh", { args: ["-c", script], cwd: made.root, timeoutMs: 300 });
  assert.deepEqual(timed, { kind: "timeout" });
  assert.ok(await gone());
  const aborted = await runChild("sh", {
    args: ["-c", script],
    cwd: made.root,
    timeoutMs: 60_000,
    signal: AbortSignal.timeout(300),
  });
  assert.deepEqual(aborted, { kind: "aborted" });
  assert.ok(await gone());
  assert.deepEqual(await runChild("sh", { args: ["-c", "exit 7"], cwd: made.root, timeoutMs: 9_000 }), {
    kind: "exit",
    code: 7,
  });
});
