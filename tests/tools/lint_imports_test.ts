import assert from "node:assert/strict";
import { importFault } from "./import_rules.ts";
import plugin from "./lint_imports.ts";

const ROOT = decodeURIComponent(new URL("../../", import.meta.url).pathname);

/** What the plug-in says of `source` as the file `path` of the project: rule names and messages. */
function lint(path: string, source: string): string[] {
  return Deno.lint.runPlugin(plugin, ROOT + path, source).map(({ id, message }) => `${id}: ${message}`);
}

Deno.test("imports run down the layers, and no other way", () => {
  const layers = ["agent", "vdisk", "vnet", "multicast", "hypercall"];
  const allowed = new Set(
    layers.flatMap((from) =>
      layers.filter((to) => from === to || from === "agent" || (from !== "hypercall" && to === "hypercall"))
        .map((to) => `${from}>${to}`)
    ),
  );
  assert.equal(allowed.size, 5 + 4 + 3);
  for (const from of layers) {
    assert.equal(importFault("main.ts", `${from}/x.ts`), undefined);
    assert.ok(importFault(`${from}/x.ts`, "main.ts"));
    for (const to of layers) {
      assert.equal(
        importFault(`${from}/a.ts`, `${to}/b/c.ts`) === undefined,
        allowed.has(`${from}>${to}`),
        `${from} > ${to}`,
      );
    }
  }
});

Deno.test("native code is reached from the rim only", () => {
  for (const to of ["hypercall/native/machine.ts", "vdisk/native_ring.ts"]) {
    assert.equal(importFault("main.ts", to), undefined);
    assert.equal(importFault("agent/memory/memory_worker.ts", to), undefined);
    assert.equal(importFault("agent/memory/memtap_test.ts", to), undefined);
    assert.equal(importFault("tests/lab/x.ts", to), undefined);
    assert.ok(importFault("agent/memory/memtap.ts", to));
  }
  assert.equal(importFault("hypercall/native/a.ts", "hypercall/native/b.ts"), undefined);
  assert.equal(importFault("vdisk/native_ring.ts", "hypercall/native/b.ts"), undefined);
  assert.ok(importFault("vdisk/native_ring.ts", "vnet/native_link.ts"), "the direction holds for native code too");
});

Deno.test("nothing but tests imports tests, and an unknown folder is told", () => {
  assert.ok(importFault("agent/a.ts", "tests/sim/x.ts"));
  assert.ok(importFault("agent/a.ts", "agent/b_test.ts"));
  assert.ok(importFault("extra/a.ts", "agent/b.ts"));
  assert.equal(importFault("vdisk/a_test.ts", "tests/sim/x.ts"), undefined);
});

Deno.test("the rule sees every form of import", () => {
  for (
    const source of [
      'import { a } from "../agent/a.ts";',
      'import type { A } from "../agent/a.ts";',
      'export * from "../agent/a.ts";',
      'export { a } from "../agent/a.ts";',
      'await import("../agent/a.ts");',
      'export type A = import("../agent/a.ts").A;',
    ]
  ) {
    const found = lint("vdisk/x.ts", source);
    assert.equal(found.length, 1, source);
    assert.match(found[0] ?? "", /^snowflock\/imports: vdisk may not import agent/);
  }
  assert.deepEqual(
    lint("vdisk/x.ts", 'import { z } from "zod"; import { b } from "../hypercall/ports.ts"; export { b, z };'),
    [],
  );
  assert.match(lint("vdisk/x.ts", 'import "../../elsewhere.ts";')[0] ?? "", /outside the project/);
});

Deno.test("FFI outside native code is found", () => {
  const source = 'Deno.dlopen("libc.so.6", {}); new Deno.UnsafePointerView(p);';
  assert.equal(lint("agent/x.ts", source).length, 2);
  assert.deepEqual(lint("hypercall/native/x.ts", source), []);
  assert.deepEqual(lint("agent/native_x.ts", source), []);
});

Deno.test("a worker's relative address is found", () => {
  assert.match(lint("agent/x.ts", 'new Worker(new URL("./a_worker.ts", import.meta.url));')[0] ?? "", /worker-url/);
  assert.deepEqual(lint("agent/x.ts", 'new Worker(workerUrl("agent/a_worker"), { type: "module" });'), []);
});
