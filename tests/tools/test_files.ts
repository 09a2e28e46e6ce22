/** The project's test files, and the group each runs in. */
import { isNative } from "./import_rules.ts";

export interface TestGroups {
  /** Run with FFI denied. */
  readonly plain: readonly string[];
  /** Tests of native code (`native/`, `native_*_test.ts`): they may call into libc. */
  readonly native: readonly string[];
  /** `*lab_test.ts`: they boot the lab, each in a process of its own. */
  readonly lab: readonly string[];
}

/** Folders that hold no source. */
const NOT_SEARCHED = new Set(["node_modules", "dist", "fixtures"]);
/** Far more files than the project has: a runaway (a link that loops, a stray tree) is told instead of walked. */
const MAX_FILES = 20_000;

/** All files below `root` whose name passes, sorted, relative to it with `./` before, as `deno test` reports them. */
export function findFiles(root: string, wanted: (path: string) => boolean): string[] {
  const found: string[] = [];
  let seen = 0;
  const visit = (folder: string) => {
    for (const entry of Deno.readDirSync(`${root}/${folder}`)) {
      if (++seen > MAX_FILES) throw new Error(`Cannot search ${root}: it holds over ${MAX_FILES} files`);
      if (entry.name.startsWith(".") || NOT_SEARCHED.has(entry.name)) continue;
      const path = `${folder}/${entry.name}`;
      if (entry.isDirectory) visit(path);
      else if (entry.isFile && wanted(path)) found.push(path);
    }
  };
  visit(".");
  return found.sort();
}

export function groupTests(files: readonly string[]): TestGroups {
  const lab = files.filter((file) => file.endsWith("lab_test.ts"));
  const rest = files.filter((file) => !file.endsWith("lab_test.ts"));
  return { plain: rest.filter((file) => !isNative(file)), native: rest.filter(isNative), lab };
}

export function findTests(root: string): TestGroups {
  return groupTests(findFiles(root, (path) => path.endsWith("_test.ts")));
}
