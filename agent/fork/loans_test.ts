import assert from "node:assert/strict";
import { SnapshotLoans } from "./loans.ts";

function recorder() {
  const released: string[] = [];
  const loans = new SnapshotLoans((snapshot) => {
    released.push(snapshot);
    return Promise.resolve();
  });
  return { released, loans };
}

Deno.test("a snapshot that nobody borrows is released at once", async () => {
  const { released, loans } = recorder();
  await loans.release("s");
  assert.deepEqual(released, ["s"]);
});

Deno.test("a borrowed snapshot is released with its last borrower, once", async () => {
  const { released, loans } = recorder();
  loans.lend("s", "t", 1);
  loans.lend("s", "t", 2);
  await loans.release("s");
  await loans.giveBack("t", 1);
  await loans.giveBack("t", 1);
  assert.deepEqual(released, []);
  await loans.giveBack("t", 2);
  await loans.giveBack("t", 2);
  assert.deepEqual(released, ["s"]);
});

Deno.test("borrowers that leave first release nothing that the engine still uses", async () => {
  const { released, loans } = recorder();
  loans.lend("s", "t", 1);
  await loans.giveBack("t", 1);
  assert.deepEqual(released, []);
  await loans.release("s");
  assert.deepEqual(released, ["s"]);
});
