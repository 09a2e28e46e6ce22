/**
 * How long a fork takes on one host, beside `xl save` and `xl restore` of the same guest in the same run.
 *
 *     deno task bench [--clones 1,1,1,4,16,32] [--json FILE]
 *
 * The guest is the smallest that boots (96 MiB) and idle. The first fork of an agent's life is listed as such.
 */
import { parseArgs } from "node:util";
import { Lab } from "../lab/mod.ts";
import { saveAndRestore } from "./baseline.ts";
import { LabAgent } from "./lab_agent.ts";
import { forkGuest } from "./run_fork.ts";

const { values } = parseArgs({
  options: { clones: { type: "string", default: "1,1,1,4,16,32" }, json: { type: "string" } },
});
const counts = values.clones.split(",").map(Number);
if (!counts.every((count) => Number.isInteger(count) && count >= 1 && count <= 64)) {
  throw new RangeError("--clones: numbers of 1..64, with commas between");
}

const MIB = 1 << 20;

interface Row {
  readonly clones: number;
  readonly shellMs: number;
  readonly pauseMs: number;
  readonly firstRunMs: number;
  readonly lastRunMs: number;
  readonly xenMibPerClone: number;
  readonly dom0MibPerClone: number;
  readonly faultsPerClone: number;
}

await using lab = await Lab.up({ hosts: 1 });
const host = lab.host(1);
await using agent = await LabAgent.start(host);
const booted = await host.createGuest({ name: "parent", kind: "minimal", memoryMib: 96 });
const { guest, baseline } = await saveAndRestore(host, booted);

async function free(): Promise<{ xen: number; dom0: number }> {
  const { stdout } = await host.run("xl info free_memory; awk '/MemAvailable/ { print $2 * 1024 }' /proc/meminfo");
  const [xen = "0", dom0 = "0"] = stdout.trim().split("\n");
  return { xen: Number(xen.replace(/\D/g, "")) * MIB, dom0: Number(dom0) };
}

const rows: Row[] = [];
for (const clones of counts) {
  const before = await free();
  const fork = await forkGuest(agent, guest, clones);
  const after = await free();
  const ticket = await agent.ticket(fork.ticket);
  const runs = fork.clones.map(({ times }) => times.firstRunMs ?? NaN);
  const mean = (values: readonly number[]) => values.reduce((sum, value) => sum + value, 0) / values.length;
  rows.push({
    clones,
    shellMs: mean(ticket.clones.map(({ times }) => times.shellMs ?? NaN)),
    pauseMs: ticket.fork?.pauseMs ?? NaN,
    firstRunMs: Math.min(...runs),
    lastRunMs: Math.max(...runs),
    xenMibPerClone: (before.xen - after.xen) / clones / MIB,
    dom0MibPerClone: (before.dom0 - after.dom0) / clones / MIB,
    faultsPerClone: mean(ticket.clones.map(({ memory }) => memory?.["faulted"] ?? NaN)),
  });
  await agent.api.kill(fork.ticket);
  console.error(`bench: ${clones} clones: first after ${rows.at(-1)?.firstRunMs.toFixed(0)} ms`);
}

const round = (value: number, digits = 0) => Number(value.toFixed(digits));
console.table(rows.map((row) => ({
  clones: row.clones,
  "shell ms": round(row.shellMs),
  "pause ms": round(row.pauseMs),
  "first runs ms": round(row.firstRunMs),
  "last runs ms": round(row.lastRunMs),
  "Xen MiB each": round(row.xenMibPerClone, 1),
  "dom0 MiB each": round(row.dom0MibPerClone, 1),
  "faults each": round(row.faultsPerClone),
  "xl / first": round((baseline.xlSaveMs + baseline.xlRestoreMs) / row.firstRunMs, 1),
})));
console.log(`xl save ${round(baseline.xlSaveMs)} ms, xl restore ${round(baseline.xlRestoreMs)} ms`);
if (values.json !== undefined) {
  await Deno.writeTextFile(values.json, `${JSON.stringify({ rows, baseline }, null, 2)}\n`);
}
