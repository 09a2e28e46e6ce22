import assert from "node:assert/strict";
import { build, bundleEntries } from "./build.ts";

async function folder(): Promise<AsyncDisposable & { path: string }> {
  const path = await Deno.makeTempDir({ prefix: "snowflock-build-test-" });
  return { path, [Symbol.asyncDispose]: () => Deno.remove(path, { recursive: true }) };
}

async function start(program: string, args: readonly string[], env: Record<string, string>) {
  const { code, stdout, stderr } = await new Deno.Command(program, { args: [...args], env, cwd: "/", stdin: "null" })
    .output();
  return { code, stdout: new TextDecoder().decode(stdout), stderr: new TextDecoder().decode(stderr) };
}

const MAIN = `
import { z } from "zod";
import { workerUrl } from "./agent/worker_url.ts";
const worker = new Worker(workerUrl("agent/memory/echo_worker"), { type: "module" });
const answer = await new Promise((done) => {
  worker.onmessage = ({ data }) => done(data);
  worker.postMessage(20);
});
worker.terminate();
const { state: ffi } = await Deno.permissions.query({ name: "ffi" });
console.log(JSON.stringify({ args: Deno.args, answer, parsed: z.string().parse("ok"), ffi }));
Deno.exitCode = 3;
`;
const WORKER = `self.onmessage = ({ data }) => self.postMessage(data * 2 + 2);\n`;

async function writeProject(root: string): Promise<void> {
  await Deno.mkdir(`${root}/agent/memory`, { recursive: true });
  for (const name of ["deno.json", "deno.lock", "agent/worker_url.ts"]) {
    await Deno.copyFile(new URL(`../../${name}`, import.meta.url), `${root}/${name}`);
  }
  await Deno.writeTextFile(`${root}/main.ts`, MAIN);
  await Deno.writeTextFile(`${root}/agent/memory/echo_worker.ts`, WORKER);
}

Deno.test("workers must differ in their base names", async () => {
  await using temp = await folder();
  await writeProject(temp.path);
  assert.deepEqual([...bundleEntries(temp.path)], [["main.js", "./main.ts"], [
    "echo_worker.js",
    "./agent/memory/echo_worker.ts",
  ]]);
  await Deno.writeTextFile(`${temp.path}/agent/echo_worker.ts`, WORKER);
  assert.throws(() => bundleEntries(temp.path), /would both be echo_worker\.js/);
});

Deno.test("the built program unpacks itself once and runs with its workers", async (t) => {
  await using temp = await folder();
  const root = `${temp.path}/source`;
  await writeProject(root);
  const program = `${temp.path}/out/snowflock`;
  const result = await build({ root, output: program, gzipLevel: 1 });
  assert.deepEqual(result.workers, ["echo_worker.js"]);
  await Deno.remove(root, { recursive: true });
  const runtime = `${temp.path}/a runtime`;
  const env = { SNOWFLOCK_RUNTIME_DIR: runtime };
  const expected = { args: ["clone", "two words", "--json"], answer: 42, parsed: "ok", ffi: "granted" };

  await t.step("two first starts at once", async () => {
    const both = await Promise.all([1, 2].map(() => start(program, expected.args, env)));
    for (const { code, stdout, stderr } of both) {
      assert.equal(stderr, "");
      assert.deepEqual(JSON.parse(stdout), expected);
      assert.equal(code, 3);
    }
    assert.deepEqual([...Deno.readDirSync(runtime)].map(({ name }) => name), [result.build]);
    const unpacked = [...Deno.readDirSync(`${runtime}/${result.build}`)].map(({ name }) => name).sort();
    assert.deepEqual(unpacked, ["cache", "deno", "echo_worker.js", "main.js"]);
  });

  await t.step("a later start uses what is unpacked, whatever has become of the file's archive", async () => {
    const head = (await Deno.readFile(program)).subarray(0, 10_000);
    await Deno.writeFile(`${temp.path}/cut`, head, { mode: 0o755 });
    assert.equal((await start(`${temp.path}/cut`, [], env)).code, 3);
  });

  await t.step("a damaged file says so and leaves nothing", async () => {
    const bytes = await Deno.readFile(program);
    const at = bytes.length >> 1;
    bytes[at] = (bytes[at] ?? 0) ^ 1;
    await Deno.writeFile(`${temp.path}/damaged`, bytes, { mode: 0o755 });
    const empty = `${temp.path}/empty`;
    const { code, stderr } = await start(`${temp.path}/damaged`, [], { SNOWFLOCK_RUNTIME_DIR: empty });
    assert.equal(code, 1);
    assert.match(stderr, /^snowflock: Cannot unpack .*damaged: the file is damaged/);
    assert.deepEqual([...Deno.readDirSync(empty)], []);
  });

  await t.step("nowhere to unpack is told", async () => {
    const { code, stderr } = await start(program, [], { SNOWFLOCK_RUNTIME_DIR: "/proc/none" });
    assert.equal(code, 1);
    assert.match(stderr, /set SNOWFLOCK_RUNTIME_DIR/);
  });
});
