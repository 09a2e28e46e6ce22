/**
 * The distribution under faults, in simulation, over many seeds. A seed that fails is printed and ends the run; the same seed fails
 * again.
 *
 *     deno run -A tests/bench/soak.ts [--seeds N] [--first N] [--hosts H] [--clones C] [--blocks B] [--json FILE]
 */
import { parseArgs } from "node:util";
import { soak, type SoakResult } from "./soak_run.ts";

const { values } = parseArgs({
  options: {
    seeds: { type: "string", default: "50" },
    first: { type: "string", default: "1" },
    hosts: { type: "string", default: "8" },
    clones: { type: "string", default: "10" },
    blocks: { type: "string", default: "64" },
    json: { type: "string" },
  },
});
const seeds = Number(values.seeds);
const first = Number(values.first);
const [hosts, clones, blocks] = [Number(values.hosts), Number(values.clones), Number(values.blocks)];
const started = performance.now();
const results: ({ seed: number } & SoakResult)[] = [];
for (let seed = first; seed < first + seeds; seed++) {
  results.push({ seed, ...soak({ seed, hosts, clones, blocks }) });
  if ((seed - first + 1) % 50 === 0) {
    console.log(`${seed - first + 1} seeds, ${((performance.now() - started) / 1000).toFixed(0)} s`);
  }
}
const sum = (of: (result: SoakResult) => number) => results.reduce((total, result) => total + of(result), 0);
const most = (of: (result: SoakResult) => number) =>
  results.reduce((highest, result) => Math.max(highest, of(result)), 0);
console.log(
  [
    `${seeds} seeds of ${hosts} hosts x ${clones} clones: every block came, with the right content`,
    `blocks checked      ${sum((result) => result.blocksChecked)}`,
    `datagrams lost      ${sum((result) => result.datagramsLost)}`,
    `hosts that died     ${sum((result) => result.dead)}`,
    `longest, simulated  ${(most((result) => result.simulatedMs) / 1000).toFixed(1)} s`,
    `most assemblies     ${most((result) => result.mostAssemblies)}`,
    `most queued         ${most((result) => result.mostQueued)}`,
    `wall time           ${((performance.now() - started) / 1000).toFixed(1)} s`,
  ].join("\n"),
);
if (values.json !== undefined) await Deno.writeTextFile(values.json, `${JSON.stringify(results, null, 2)}\n`);
