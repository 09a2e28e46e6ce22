/**
 * Which file of the project may import which, by their paths alone: `main -> agent -> {vdisk, vnet, multicast} -> hypercall`.
 * The three in the middle never import each other, and native code is reached from the rim only, so that everything else
 * runs with FFI denied.
 */

/** Per layer, the layers it may import besides itself. A file at the top (`main.ts`) counts as `main`. */
const MAY_IMPORT: Readonly<Record<string, readonly string[]>> = {
  main: ["agent", "vdisk", "vnet", "multicast", "hypercall"],
  agent: ["vdisk", "vnet", "multicast", "hypercall"],
  vdisk: ["hypercall"],
  vnet: ["hypercall"],
  multicast: ["hypercall"],
  hypercall: [],
};

/** Paths here are relative to the project's root, with forward slashes. */
function layerOf(path: string): string {
  const slash = path.indexOf("/");
  return slash < 0 ? "main" : path.slice(0, slash);
}

/** Whether `path` is a test or belongs to the tests' own folders, which may import anything. */
export function isTest(path: string): boolean {
  return path.startsWith("tests/") || path.endsWith("_test.ts");
}

/** Whether the file may use FFI: it lies in a `native/` folder, or is called `native_*.ts`. */
export function isNative(path: string): boolean {
  return /(^|\/)native\//.test(path) || /(^|\/)native_[^/]*\.ts$/.test(path);
}

/** Whether the file is the entry of a thread, or of the program. */
export function isEntry(path: string): boolean {
  return path === "main.ts" || path.endsWith("_worker.ts");
}

/** Why the file `from` may not import the file `to`, or undefined where it may. */
export function importFault(from: string, to: string): string | undefined {
  if (isTest(from)) return undefined;
  if (isTest(to)) return `${from} is no test and may not import ${to}`;
  if (isNative(to) && !isNative(from) && !isEntry(from)) {
    return `native code is imported by main.ts, *_worker.ts, tests and native code only, not by ${from}: give it a port`;
  }
  const fromLayer = layerOf(from);
  const toLayer = layerOf(to);
  if (fromLayer === toLayer) return undefined;
  const allowed = MAY_IMPORT[fromLayer];
  if (allowed === undefined || MAY_IMPORT[toLayer] === undefined) {
    return `${from} and ${to}: a folder that the import rule does not know; add it to tests/tools/import_rules.ts`;
  }
  if (allowed.includes(toLayer)) return undefined;
  return `${fromLayer} may not import ${toLayer} (main -> agent -> { vdisk, vnet, multicast } -> hypercall)`;
}
