/**
 * Runs the suite: `run.ts fast` (everything but the lab, FFI denied wherever the code is not native) or `run.ts all` (the
 * lab's files too, one after the other). `run.ts all PATH...` runs only files whose path contains one of the words.
 *
 * Ends with one line, `N passed, N failed, N skipped`, and a status of 0 only if nothing failed. A skipped test is listed by
 * name and is not a passed one. A file that could not run, or ran no test, is a failure. Nothing is retried.
 */
import { type ChildEnd, runChild } from "./child.ts";
import { parseJunit } from "./junit.ts";
import { findTests, type TestGroups } from "./test_files.ts";

/** Without `--allow-ffi`: what passes so needs none. */
export const PLAIN_PERMISSIONS = [
  "--allow-read",
  "--allow-write",
  "--allow-env",
  "--allow-run",
  "--allow-net",
  "--allow-sys",
] as const;
const FAST_TIMEOUT_MS = 20 * 60_000;
const LAB_TIMEOUT_MS = 45 * 60_000;

export interface Tally {
  passed: number;
  failures: string[];
  skipped: string[];
}

export interface RunOptions {
  readonly root: string;
  readonly signal?: AbortSignal;
  readonly fastTimeoutMs?: number;
  readonly labTimeoutMs?: number;
}

function describe(end: ChildEnd): string {
  return end.kind === "exit" ? `status ${end.code}` : end.kind;
}

/** Runs `files` in one `deno test` and adds what really ran to `tally`. */
async function runGroup(
  tally: Tally,
  name: string,
  files: readonly string[],
  permissions: readonly string[],
  timeoutMs: number,
  options: RunOptions,
): Promise<void> {
  if (files.length === 0 || options.signal?.aborted) return;
  console.log(`\n== ${name}: ${files.length} ${files.length === 1 ? "file" : "files"}`);
  const report = await Deno.makeTempFile({ prefix: "snowflock-junit-", suffix: ".xml" });
  try {
    const end = await runChild(Deno.execPath(), {
      // Types are checked once, for all files, before: a fault in one file must not hide the other files' results.
      args: ["test", "--no-check", "--no-prompt", ...permissions, `--junit-path=${report}`, ...files],
      cwd: options.root,
      timeoutMs,
      ...(options.signal === undefined ? {} : { signal: options.signal }),
    });
    const cases = parseJunit(await Deno.readTextFile(report));
    const seen = new Set<string>();
    let failed = 0;
    for (const { file, name, result } of cases) {
      seen.add(file);
      if (result === "passed") tally.passed++;
      else if (result === "skipped") tally.skipped.push(`${file}: ${name}`);
      else {
        failed++;
        tally.failures.push(`${file}: ${name}`);
      }
    }
    for (const file of files) {
      if (seen.has(file)) continue;
      failed++;
      tally.failures.push(`${file}: ran no test (${describe(end)})`);
    }
    if (failed === 0 && (end.kind !== "exit" || end.code !== 0)) {
      tally.failures.push(`${name}: ended with ${describe(end)}`);
    }
  } finally {
    await Deno.remove(report);
  }
}

async function checkTypes(tally: Tally, files: readonly string[], options: RunOptions): Promise<void> {
  const end = await runChild(Deno.execPath(), {
    args: ["check", "--quiet", ...files],
    cwd: options.root,
    timeoutMs: FAST_TIMEOUT_MS,
    ...(options.signal === undefined ? {} : { signal: options.signal }),
  });
  if (end.kind !== "exit" || end.code !== 0) tally.failures.push(`type check: ${describe(end)}`);
}

/** Runs the groups; `scope` "fast" leaves the lab out. */
export async function runTests(groups: TestGroups, scope: "fast" | "all", options: RunOptions): Promise<Tally> {
  const tally: Tally = { passed: 0, failures: [], skipped: [] };
  const lab = scope === "all" ? groups.lab : [];
  const files = [...groups.plain, ...groups.native, ...lab];
  if (files.length === 0) tally.failures.push("no test file was found");
  else await checkTypes(tally, files, options);
  const fastMs = options.fastTimeoutMs ?? FAST_TIMEOUT_MS;
  await runGroup(tally, "without FFI", groups.plain, PLAIN_PERMISSIONS, fastMs, options);
  await runGroup(tally, "native", groups.native, ["-A"], fastMs, options);
  for (const file of lab) {
    await runGroup(tally, `lab ${file}`, [file], ["-A"], options.labTimeoutMs ?? LAB_TIMEOUT_MS, options);
  }
  if (options.signal?.aborted) tally.failures.push("interrupted");
  return tally;
}

/** The report's lines; the last is the count. */
export function summarize(tally: Tally): string[] {
  return [
    ...tally.skipped.map((name) => `skipped  ${name}`),
    ...tally.failures.map((name) => `FAILED   ${name}`),
    `${tally.passed} passed, ${tally.failures.length} failed, ${tally.skipped.length} skipped`,
  ];
}

async function main(args: readonly string[]): Promise<number> {
  const [scope, ...words] = args;
  if (scope !== "fast" && scope !== "all") {
    console.error("usage: run.ts fast|all [PATH...]");
    return 2;
  }
  const root = decodeURIComponent(new URL("../../", import.meta.url).pathname).replace(/\/$/, "");
  const all = findTests(root);
  const chosen = (files: readonly string[]) =>
    files.filter((file) => words.length === 0 || words.some((word) => file.includes(word)));
  const groups = { plain: chosen(all.plain), native: chosen(all.native), lab: chosen(all.lab) };
  const abort = new AbortController();
  const stop = () => abort.abort();
  Deno.addSignalListener("SIGINT", stop);
  Deno.addSignalListener("SIGTERM", stop);
  const tally = await runTests(groups, scope, { root, signal: abort.signal });
  console.log(`\n${summarize(tally).join("\n")}`);
  return tally.failures.length === 0 ? 0 : 1;
}

if (import.meta.main) Deno.exit(await main(Deno.args));
