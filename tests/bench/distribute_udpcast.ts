/** One run of udpcast: udp-sender, and a udp-receiver for each receiver. Killed at a time limit, for it can hang. */
import type { BenchNetwork } from "./distribute_network.ts";
import { payload } from "./distribute_node.ts";
import type { Run } from "./distribute_run.ts";

const LIMIT_MS = 60_000;

/** Reads to the end, and says when `marker` was seen first. */
async function watch(
  stream: ReadableStream<Uint8Array>,
  marker: string,
): Promise<{ seenMs: number | undefined; text: string }> {
  let text = "";
  let seenMs: number | undefined;
  for await (const chunk of stream.pipeThrough(new TextDecoderStream())) {
    text += chunk;
    if (seenMs === undefined && text.includes(marker)) seenMs = performance.now();
  }
  return { seenMs, text };
}

export async function runUdpcast(network: BenchNetwork, receivers: number, byteLength: number): Promise<Run> {
  const file = await Deno.makeTempFile({ dir: "/dev/shm", prefix: "sfbench" });
  try {
    await Deno.writeFile(file, payload(byteLength));
    const common = ["--interface", "eth0", "--nokbd"];
    const before = await network.serverBytes();
    const sender = network.command(0, "udp-sender", [
      ...common,
      "--file",
      file,
      "--full-duplex",
      "--min-receivers",
      String(receivers),
    ], { stdin: "null", stdout: "null", stderr: "piped" }).spawn();
    const children = [sender];
    for (let node = 1; node <= receivers; node++) {
      const args = [...common, "--file", "/dev/null"];
      children.push(
        network.command(node, "udp-receiver", args, { stdin: "null", stdout: "null", stderr: "piped" }).spawn(),
      );
    }
    let killed = false;
    const timer = setTimeout(() => {
      killed = true;
      for (const child of children) child.kill("SIGKILL");
    }, LIMIT_MS);
    const started = watch(sender.stderr, "Starting transfer");
    const ended = children.slice(1).map((child) => watch(child.stderr, "Transfer complete"));
    const [start, ...ends] = await Promise.all([started, ...ended]);
    await Promise.all(children.map(({ status }) => status));
    clearTimeout(timer);
    const serverBytes = await network.serverBytes() - before;
    const endsMs = ends.map(({ seenMs }) => seenMs ?? NaN);
    const seconds = (Math.max(...endsMs) - (start?.seenMs ?? NaN)) / 1000;
    const whole = !killed && Number.isFinite(seconds);
    return {
      serverBytes,
      seconds: whole ? seconds : undefined,
      notes: [start, ...ends].map((each) => each?.text).join("\n"),
    };
  } finally {
    await Deno.remove(file);
  }
}
