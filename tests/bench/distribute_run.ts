/** One run of `distribute_node.ts` processes: a server, receivers, and the check that all have the same bytes. */
import { fileURLToPath } from "node:url";
import type { BenchNetwork } from "./distribute_network.ts";
import { payload } from "./distribute_node.ts";
import { createHash } from "node:crypto";

const NODE = fileURLToPath(new URL("./distribute_node.ts", import.meta.url));
const PORT = 7400;
const LIMIT_MS = 60_000;

export interface Run {
  readonly serverBytes: number;
  /** Undefined: it did not end in time. */
  readonly seconds: number | undefined;
  readonly notes: string;
}

/** A process that is spoken to in lines. */
class Node implements AsyncDisposable {
  readonly #child: Deno.ChildProcess;
  readonly #reader: ReadableStreamDefaultReader<string>;
  readonly #writer: WritableStreamDefaultWriter<Uint8Array>;
  #text = "";

  constructor(network: BenchNetwork, node: number, args: string[]) {
    const command = network.command(node, Deno.execPath(), ["run", "-A", "--no-prompt", NODE, ...args], {
      stdin: "piped",
      stdout: "piped",
      stderr: "inherit",
    });
    this.#child = command.spawn();
    this.#reader = this.#child.stdout.pipeThrough(new TextDecoderStream()).getReader();
    this.#writer = this.#child.stdin.getWriter();
  }

  async line(): Promise<string> {
    for (;;) {
      const at = this.#text.indexOf("\n");
      if (at >= 0) {
        const line = this.#text.slice(0, at);
        this.#text = this.#text.slice(at + 1);
        return line;
      }
      const { value, done } = await this.#reader.read();
      if (done) throw new Error("A process of the benchmark ended early");
      this.#text += value;
    }
  }

  async tell(word: string): Promise<void> {
    await this.#writer.write(new TextEncoder().encode(`${word}\n`));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    try {
      this.#child.kill("SIGKILL");
    } catch (error) {
      // It has ended by itself.
      if (!(error instanceof TypeError || error instanceof Deno.errors.NotFound)) throw error;
    }
    await this.#child.status;
    await this.#reader.cancel();
    await this.#writer.close().catch(() => {});
  }
}

/** `prefix` is empty, or "tcp-". */
export async function runNodes(
  network: BenchNetwork,
  prefix: string,
  receivers: number,
  byteLength: number,
): Promise<Run> {
  await using processes = new AsyncDisposableStack();
  const server = `${network.address(0)}:${PORT}`;
  const serverNode = processes.use(new Node(network, 0, [`${prefix}serve`, server, "", String(byteLength)]));
  const nodes = Array.from({ length: receivers }, (_, at) => {
    const address = `${network.address(at + 1)}:${PORT}`;
    return processes.use(new Node(network, at + 1, [`${prefix}receive`, address, server, String(byteLength)]));
  });
  for (const node of [serverNode, ...nodes]) await node.line();
  const before = await network.serverBytes();
  const ended = Promise.all(nodes.map(async (node) => {
    await node.tell("go");
    return JSON.parse(await node.line()) as { startedMs: number; endedMs: number; digest: string; stats?: unknown };
  }));
  let timer: ReturnType<typeof setTimeout> | undefined;
  const limit = new Promise<undefined>((resolve) => timer = setTimeout(() => resolve(undefined), LIMIT_MS));
  const results = await Promise.race([ended, limit]);
  clearTimeout(timer);
  const serverBytes = await network.serverBytes() - before;
  if (results === undefined) {
    ended.catch(() => {});
    return { serverBytes, seconds: undefined, notes: "killed at the time limit" };
  }
  const digest = createHash("sha256").update(payload(byteLength)).digest("hex");
  if (results.some((result) => result.digest !== digest)) throw new Error("A receiver has other bytes than the server");
  let notes = JSON.stringify(results.map(({ stats }) => stats));
  await serverNode.tell("stop");
  if (prefix === "") notes = `${await serverNode.line()}\n${notes}`;
  const startedMs = Math.min(...results.map(({ startedMs }) => startedMs));
  const endedMs = Math.max(...results.map(({ endedMs }) => endedMs));
  return { serverBytes, seconds: (endedMs - startedMs) / 1000, notes };
}
