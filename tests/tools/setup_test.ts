import assert from "node:assert/strict";
import { LAB_PACKAGES, missingPackages, TEST_PACKAGES } from "./setup.ts";

Deno.test("a package that is not there is missing, an installed one is not", async () => {
  assert.deepEqual(await missingPackages(["dpkg", "no-such-package-anywhere"]), ["no-such-package-anywhere"]);
});

Deno.test("each package is named once", () => {
  const all = [...TEST_PACKAGES, ...LAB_PACKAGES];
  assert.equal(new Set(all).size, all.length);
});
