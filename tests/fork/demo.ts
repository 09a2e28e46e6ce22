/**
 * The main job, seen: real Xen in QEMU, a guest that checks itself, forked while it runs; every copy checks itself too.
 *
 *     deno task demo [--clones 4] [--seconds 120] [--hosts 1] [--json FILE]
 */
import { parseArgs } from "node:util";
import { Lab } from "../lab/mod.ts";
import { saveAndRestore } from "./baseline.ts";
import { LabAgent } from "./lab_agent.ts";
import { forkGuest, type ForkResult, verifyAndJoin } from "./run_fork.ts";

interface Arguments {
  readonly clones: number;
  readonly seconds: number;
  readonly hosts: 1 | 2;
  readonly json: string | undefined;
}

const USAGE = "usage: deno task demo [--clones 1..32] [--seconds 1..3600] [--hosts 1|2] [--json FILE]";

function readArguments(words: string[]): Arguments {
  const { values } = parseArgs({
    args: words,
    options: {
      clones: { type: "string", default: "4" },
      seconds: { type: "string", default: "120" },
      hosts: { type: "string", default: "1" },
      json: { type: "string" },
      help: { type: "boolean", default: false },
    },
  });
  if (values.help) {
    console.log(USAGE);
    Deno.exit(0);
  }
  const number = (text: string, low: number, high: number) => {
    const value = Number(text);
    if (!Number.isInteger(value) || value < low || value > high) {
      throw new RangeError(`${text} is not in ${low}..${high}`);
    }
    return value;
  };
  return {
    clones: number(values.clones, 1, 32),
    seconds: number(values.seconds, 1, 3600),
    hosts: number(values.hosts, 1, 2) as 1 | 2,
    json: values.json,
  };
}

const say = (text: string) => console.error(`demo: ${text}`);
const ms = (value: number) => Number.isFinite(value) ? value.toFixed(0) : "-";

/** Whether the run shows what it should: every copy verified itself at least once, none found a mismatch, all were joined. */
function passes({ parent, clones }: ForkResult): boolean {
  return parent.mismatches === 0 && parent.rounds > 0 &&
    clones.every(({ id, mismatches, rounds, status, data }) =>
      mismatches === 0 && rounds > 0 && status === 10 + id && data === `clone ${id} of ${clones.length}`
    );
}

async function run({ clones, seconds, hosts }: Arguments) {
  await using lab = await Lab.up({ hosts });
  await using stack = new AsyncDisposableStack();
  say("installing the agent");
  const [agent] = await LabAgent.startAll(lab.hosts, stack);
  if (agent === undefined) throw new Error("there is no host");
  say("a guest of 128 MiB with 2 vCPUs boots");
  const booted = await agent.host.createGuest({ name: "parent", kind: "selfcheck", memoryMib: 128, vcpus: 2 });
  say("for comparison: xl save and xl restore of it");
  const { guest, baseline } = await saveAndRestore(agent.host, booted);
  await guest.shell("sf init");
  say(`it forks into ${clones} clones`);
  const fork = await forkGuest(agent, guest, clones);
  say(`all run; parent and clones check themselves for ${seconds} s`);
  const result = await verifyAndJoin(agent, lab.hosts, guest, fork, seconds);
  return { verdict: passes(result) ? "pass" as const : "fail" as const, ...result, baseline };
}

const options = readArguments(Deno.args);
const result = await run(options);
const { parent, baseline } = result;
console.log(`
parent   pause ${ms(parent.pauseMs)} ms = suspend ${ms(parent.suspendMs)} + capture ${
  ms(parent.captureMs)
} + nominate ${ms(parent.nominateMs)} + resume ${
  ms(parent.resumeMs)
}; ${parent.rounds} rounds, ${parent.mismatches} mismatches
clone    ${ms(result.cloneMs)} ms for all; descriptor ${result.descriptorBytes} bytes
xl       save ${ms(baseline.xlSaveMs)} ms, restore ${ms(baseline.xlRestoreMs)} ms
`);
console.table(result.clones.map((clone) => ({
  id: clone.id,
  host: clone.host,
  "shell ms": ms(clone.shellMs),
  "restore ms": ms(clone.restoreMs),
  "first run ms": ms(clone.firstRunMs),
  faults: clone.faults,
  "pages resident": clone.pagesResident,
  rounds: clone.rounds,
  mismatches: clone.mismatches,
  status: clone.status,
  data: clone.data,
})));
console.log(`verdict: ${result.verdict}`);
if (options.json !== undefined) await Deno.writeTextFile(options.json, `${JSON.stringify(result, null, 2)}\n`);
Deno.exit(result.verdict === "pass" ? 0 : 1);
