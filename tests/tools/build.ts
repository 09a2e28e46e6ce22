/**
 * Builds `dist/snowflock`, one executable that holds Deno, the program and its workers' bundles. (`deno compile` would fetch its
 * runtime from the network; the Deno that runs this is taken instead.)
 *
 *     build.ts [OUTPUT]
 */
import { createHash } from "node:crypto";
import { launcher } from "./launcher.ts";
import { findFiles } from "./test_files.ts";

export interface BuildOptions {
  /** The project: holds `main.ts`. */
  readonly root: string;
  readonly output: string;
  /** 1 (fast) to 9 (small). */
  readonly gzipLevel?: number;
}

export interface BuildResult {
  readonly build: string;
  readonly bytes: number;
  readonly workers: readonly string[];
}

async function run(program: string, args: readonly string[], cwd: string): Promise<string> {
  const { success, stdout, stderr } = await new Deno.Command(program, { args: [...args], cwd, stdin: "null" }).output();
  if (!success) throw new Error(`Cannot run ${program} ${args[0]}:\n${new TextDecoder().decode(stderr)}`);
  return new TextDecoder().decode(stdout);
}

/** The entries to bundle, from bundle name to source path. Throws where two workers have the same base name. */
export function bundleEntries(root: string): Map<string, string> {
  const entries = new Map([["main.js", "./main.ts"]]);
  const workers = findFiles(
    root,
    (path) => path.endsWith("_worker.ts") && !path.endsWith("_test_worker.ts") && !path.startsWith("./tests/"),
  );
  for (const path of workers) {
    const name = path.replace(/^.*\//, "").replace(/\.ts$/, ".js");
    const other = entries.get(name);
    if (other !== undefined) throw new Error(`Cannot build: ${other} and ${path} would both be ${name}`);
    entries.set(name, path);
  }
  return entries;
}

/** Writes the executable. Needs gzip and tar (GNU). The same sources and the same Deno give the same bytes. */
export async function build({ root, output, gzipLevel = 6 }: BuildOptions): Promise<BuildResult> {
  const work = await Deno.makeTempDir({ prefix: "snowflock-build-" });
  try {
    const stage = `${work}/stage`;
    await Deno.mkdir(`${stage}/cache`, { recursive: true });
    const entries = bundleEntries(root);
    for (const [name, path] of entries) {
      await run(
        Deno.execPath(),
        ["bundle", "--quiet", "--platform", "deno", "--output", `${stage}/${name}`, path],
        root,
      );
    }
    await Deno.copyFile(Deno.execPath(), `${stage}/deno`);
    await Deno.chmod(`${stage}/deno`, 0o755);
    const tarArgs = ["--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner", "--mode=u=rwX,go=rX"];
    await run("tar", ["-cf", `${work}/archive.tar`, ...tarArgs, "-C", stage, "."], root);
    await run("gzip", ["-n", `-${gzipLevel}`, `${work}/archive.tar`], root);
    const archive = await Deno.readFile(`${work}/archive.tar.gz`);
    const digest = createHash("sha256").update(archive).digest("hex").slice(0, 16);
    const head = launcher({ build: digest });
    await Deno.mkdir(output.replace(/[^/]*$/, "") || ".", { recursive: true });
    const fresh = `${output}.new`;
    await Deno.writeFile(fresh, head);
    await Deno.writeFile(fresh, archive, { append: true });
    await Deno.chmod(fresh, 0o755);
    await Deno.rename(fresh, output);
    const workers = [...entries.keys()].filter((name) => name !== "main.js");
    return { build: digest, bytes: head.length + archive.length, workers };
  } finally {
    await Deno.remove(work, { recursive: true });
  }
}

if (import.meta.main) {
  const root = decodeURIComponent(new URL("../../", import.meta.url).pathname).replace(/\/$/, "");
  const output = Deno.args[0] ?? `${root}/dist/snowflock`;
  const result = await build({ root, output });
  const megabytes = (result.bytes / 1e6).toFixed(1);
  console.log(`${output}: build ${result.build}, ${megabytes} MB, workers ${result.workers.join(" ") || "none"}`);
}
