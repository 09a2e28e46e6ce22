import assert from "node:assert/strict";
import { EngineError } from "../api/engine.ts";
import { slurm } from "./slurm.ts";
import { SlurmCluster } from "./slurm_daemons.ts";

Deno.test("slurm: an allocation a ticket, on nodes with room; fewer where there are fewer; given back at the end", async () => {
  await using cluster = await SlurmCluster.start([
    { name: "a", cpus: 4 },
    { name: "b", cpus: 4 },
    { name: "not-ours", cpus: 8 },
  ]);
  const policy = slurm({ env: cluster.env, waitSeconds: 3, timeoutMs: 20_000 });
  // One that was cancelled is shown as completing for a while.
  const jobs = () => cluster.run("squeue", "-h", "-t", "PENDING,RUNNING", "-o", "%j %T");

  const placed = await policy.allocate("t1", 6, new Map([["a", 100], ["b", 100], ["nobody", 100]]));
  assert.deepEqual([...placed].toSorted(), [["a", 4], ["b", 2]]);
  assert.equal(await jobs(), "snowflock-t1 RUNNING");

  // Two CPUs are left; six are asked for, then three, then one.
  const rest = await policy.allocate("t2", 6, new Map([["a", 100], ["b", 100]]));
  assert.deepEqual([...rest], [["b", 1]]);

  await policy.release("t1");
  await policy.release("t1");
  assert.equal(await jobs(), "snowflock-t2 RUNNING");

  // No room, as far as memory goes, on one; a little on the other.
  const little = await policy.allocate("t3", 4, new Map([["a", 3], ["b", 0]]));
  assert.deepEqual([...little], [["a", 3]]);
  await policy.release("t2");
  await policy.release("t3");
  assert.equal(await jobs(), "");

  await assert.rejects(policy.allocate("t4", 1, new Map([["elsewhere", 5]])), (error) => {
    assert(error instanceof EngineError);
    assert.match(error.message, /no node with the name of a host with room/);
    return true;
  });
  assert.equal(await jobs(), "");
});

Deno.test("slurm: where it does not answer, the failure says so", async () => {
  const policy = slurm({ env: { SLURM_CONF: "/nonexistent/slurm.conf" }, timeoutMs: 500 });
  await assert.rejects(policy.allocate("t", 1, new Map([["a", 1]])), /Cannot place clones: sinfo /);
});
