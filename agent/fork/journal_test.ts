import assert from "node:assert/strict";
import { Journal, journalFile } from "./journal.ts";

const A = "11111111-2222-3333-4444-555555555555";
const PARENT = { domid: 3, uuid: A, ring: "1044472", ranges: [["0", 32768]] as [string, number][] };

Deno.test("journal: the next agent reads what the last one held", async () => {
  const folder = await Deno.makeTempDir();
  try {
    const path = `${folder}/journal.json`;
    const journal = new Journal(journalFile(path));
    journal.addShells([A]);
    journal.addParent(PARENT);
    const next = new Journal(journalFile(path));
    assert.deepEqual(next.shells, [A]);
    assert.deepEqual(next.parents, [PARENT]);
    next.removeShell(A);
    next.removeParent(A);
    assert.deepEqual(new Journal(journalFile(path)).shells, []);
    assert.equal((await Deno.stat(path)).mode! & 0o777, 0o600);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});

Deno.test("journal: a damaged file is an error that says so, and is left alone", () => {
  for (
    const text of ["", "{", '{"version":2,"shells":[],"parents":[]}', '{"version":1,"shells":["../x"],"parents":[]}']
  ) {
    let replaced = false;
    assert.throws(() => new Journal({ read: () => text, replace: () => void (replaced = true) }), /journal.*damaged/);
    assert.equal(replaced, false);
  }
});
