/**
 * Distribution of the same bytes to 1 to 8 receivers: this program's, beside udpcast, beside a TCP stream for each receiver. Real
 * sockets and processes, in network namespaces of its own. Needs root.
 *
 *     deno run -A tests/bench/distribute.ts [--json FILE] [--quick] [--tools T,T] [--receivers N,N] [--loss P,P] [--mib N] [--runs N]
 *                                           [--offload]
 */
import { parseArgs } from "node:util";
import { BenchNetwork } from "./distribute_network.ts";
import { runNodes } from "./distribute_run.ts";
import { runUdpcast } from "./distribute_udpcast.ts";

interface Row {
  tool: string;
  receivers: number;
  lossPercent: number;
  payloadBytes: number;
  /** Sent by the server's interface, Ethernet, IP and UDP headers included. */
  serverBytes: number;
  /** From the first receiver's start to the last one's end; null for a run that did not end in time. */
  seconds: number | null;
}

const { values } = parseArgs({
  options: {
    json: { type: "string" },
    quick: { type: "boolean", default: false },
    offload: { type: "boolean", default: false },
    verbose: { type: "boolean", default: false },
    tools: { type: "string", default: "snowflock,udpcast,tcp" },
    receivers: { type: "string" },
    loss: { type: "string" },
    mib: { type: "string" },
    runs: { type: "string", default: "1" },
  },
});

function numbers(text: string): number[] {
  return text.split(",").map((each) => {
    const number = Number(each);
    if (!Number.isFinite(number) || number < 0) throw new RangeError(`Not a number: ${each}`);
    return number;
  });
}

const receiverCounts = numbers(values.receivers ?? (values.quick ? "1,4" : "1,2,4,8"));
const losses = numbers(values.loss ?? (values.quick ? "0,1" : "0,1,5"));
const payloadBytes = Number(values.mib ?? (values.quick ? 16 : 64)) << 20;
const tools = values.tools.split(",");

async function measure(tool: string, receivers: number, lossPercent: number): Promise<Row> {
  await using network = await BenchNetwork.open(receivers + 1, lossPercent, values.offload);
  const run = tool === "udpcast"
    ? await runUdpcast(network, receivers, payloadBytes)
    : await runNodes(network, tool === "tcp" ? "tcp-" : "", receivers, payloadBytes);
  if (values.verbose) console.error(run.notes);
  return { tool, receivers, lossPercent, payloadBytes, serverBytes: run.serverBytes, seconds: run.seconds ?? null };
}

/** The run of the median time; a run that did not end counts as the longest. */
function median(rows: Row[]): Row {
  const sorted = rows.toSorted((a, b) => (a.seconds ?? Infinity) - (b.seconds ?? Infinity));
  const row = sorted[Math.floor((sorted.length - 1) / 2)];
  if (row === undefined) throw new RangeError("At least one run");
  return row;
}

const rows: Row[] = [];
console.log("tool       receivers  loss %  seconds   MB/s each  server bytes / payload");
for (const lossPercent of losses) {
  for (const receivers of receiverCounts) {
    for (const tool of tools) {
      const runs: Row[] = [];
      for (let n = 0; n < Number(values.runs); n++) runs.push(await measure(tool, receivers, lossPercent));
      const row = median(runs);
      rows.push(row);
      const seconds = row.seconds === null ? "hung" : row.seconds.toFixed(3);
      const rate = row.seconds === null ? "-" : (payloadBytes / row.seconds / 1e6).toFixed(1);
      console.log(
        `${tool.padEnd(11)}${String(receivers).padStart(9)}${String(lossPercent).padStart(8)}${seconds.padStart(9)}` +
          `${rate.padStart(12)}${(row.serverBytes / payloadBytes).toFixed(3).padStart(24)}`,
      );
    }
  }
}
if (values.json !== undefined) await Deno.writeTextFile(values.json, `${JSON.stringify(rows, null, 2)}\n`);
