/**
 * Things built once and kept outside the checkout. Each lies in a folder named after a hash of what it is made of. It is
 * built in a folder of another name, which is renamed when it is whole: what exists under its name is complete.
 */
import { createHash } from "node:crypto";
import { progress, since } from "./progress.ts";
import { CommandError } from "./command.ts";
import { exists } from "./files.ts";

/** How many versions of one artefact are kept. */
const KEPT = 2;

/** `$SNOWFLOCK_CACHE`, or `~/.cache/snowflock/lab`. */
export function cacheFolder(): string {
  const home = Deno.env.get("XDG_CACHE_HOME") ?? `${Deno.env.get("HOME") ?? "/root"}/.cache`;
  return Deno.env.get("SNOWFLOCK_CACHE") ?? `${home}/snowflock/lab`;
}

export interface Recipe {
  readonly name: string;
  /** Script that is given the folder to fill, then `args`. */
  readonly script: string;
  readonly args: readonly string[];
  /** Files and folders (those that exist) whose content decides what comes out, besides the script's. */
  readonly inputs: readonly string[];
  /** Other things that decide it, such as the hashed folders it is made from. */
  readonly key: readonly string[];
  /** How long it takes, for people. */
  readonly takes: string;
}

/** The folder of an artefact, which is built if it is not there. Others that want to build wait for this one. */
export async function artefact(recipe: Recipe): Promise<string> {
  const folder = `${cacheFolder()}/artefacts`;
  await Deno.mkdir(folder, { recursive: true });
  const path = `${folder}/${recipe.name}-${await recipeHash(recipe)}`;
  if (await exists(path)) return path;
  using lock = await Deno.open(`${folder}/${recipe.name}.lock`, { create: true, write: true });
  if (!(await lock.tryLock(true))) {
    progress(`waiting for another process that builds ${recipe.name}`);
    await lock.lock(true);
  }
  if (await exists(path)) return path;
  for await (const entry of Deno.readDir(folder)) {
    if (entry.name.startsWith(`building-${recipe.name}-`)) {
      await Deno.remove(`${folder}/${entry.name}`, { recursive: true });
    }
  }
  const started = performance.now();
  progress(`building ${recipe.name} (${recipe.takes}, once)`);
  const building = `${folder}/building-${recipe.name}-${Deno.pid}`;
  await Deno.mkdir(building);
  await build(recipe, building);
  await Deno.rename(building, path);
  progress(`built ${recipe.name} in ${since(started)}`);
  await prune(folder, recipe.name);
  return path;
}

/** Runs the script with its output in a log, whose end goes into the error. Ctrl-C reaches the script as well. */
async function build(recipe: Recipe, folder: string): Promise<void> {
  const log = `${cacheFolder()}/${recipe.name}.log`;
  const child = new Deno.Command("sh", {
    args: ["-c", 'log=$1; shift; exec setpriv --pdeathsig TERM sh "$@" > "$log" 2>&1', "sh", log, recipe.script, folder]
      .concat(recipe.args),
    stdin: "null",
    stdout: "null",
    stderr: "null",
  }).spawn();
  const { code } = await child.status;
  if (code !== 0) {
    const tail = (await Deno.readTextFile(log)).split("\n").slice(-30).join("\n");
    throw new CommandError(`${recipe.script} (log: ${log})`, { status: code, stdout: tail, stderr: "" });
  }
}

async function recipeHash(recipe: Recipe): Promise<string> {
  const hash = createHash("sha256");
  for (const text of [recipe.name, ...recipe.key]) hash.update(`${text.length}:${text}`);
  for (const path of [recipe.script, ...recipe.inputs]) {
    const name = path.slice(path.lastIndexOf("/") + 1);
    for (const file of await filesUnder(path)) {
      const bytes = await Deno.readFile(path + file);
      hash.update(`${name}${file}:${bytes.length}:`).update(bytes);
    }
  }
  return hash.digest("hex").slice(0, 16);
}

/** Files in a folder, sorted, as "/a/b"; "" for a file; nothing for what does not exist. */
async function filesUnder(path: string): Promise<string[]> {
  const info = await Deno.stat(path).catch((error: unknown) => {
    if (error instanceof Deno.errors.NotFound) return undefined;
    throw error;
  });
  if (info === undefined) return [];
  if (info.isFile) return [""];
  const found: string[] = [];
  for await (const entry of Deno.readDir(path)) {
    for (const file of await filesUnder(`${path}/${entry.name}`)) found.push(`/${entry.name}${file}`);
  }
  return found.sort();
}

/** Removes all but the newest versions. A machine that runs from a removed one keeps its open files. */
async function prune(folder: string, name: string): Promise<void> {
  const versions: { path: string; timeMs: number }[] = [];
  for await (const entry of Deno.readDir(folder)) {
    const path = `${folder}/${entry.name}`;
    if (entry.isDirectory && entry.name.startsWith(`${name}-`)) {
      versions.push({ path, timeMs: (await Deno.stat(path)).mtime?.getTime() ?? 0 });
    }
  }
  versions.sort((a, b) => b.timeMs - a.timeMs);
  for (const { path } of versions.slice(KEPT)) await Deno.remove(path, { recursive: true });
}
