/**
 * Where a worker's entry file is. From source that is the file itself; the built program is a folder of bundles, all side by
 * side, each under its entry's base name (`tests/tools/build.ts`).
 */

/** `name`: the entry's path from the project's root without its ending, `agent/memory/memory_worker`. */
export function workerUrl(name: string, self: string = import.meta.url): URL {
  if (!/^([a-z0-9_]+\/)*[a-z0-9_]+_worker$/.test(name)) throw new RangeError(`${name} does not name a worker`);
  if (self.endsWith(".ts")) return new URL(`../${name}.ts`, self);
  return new URL(`./${name.slice(name.lastIndexOf("/") + 1)}.js`, self);
}
