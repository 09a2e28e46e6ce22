/**
 * One process of the distribution benchmark: a server or a receiver, of this program's protocol or of a TCP stream for each receiver.
 * Speaks in lines: prints `ready`, is told `go`, prints its result as JSON; the server is told `stop`.
 */
import { createHash } from "node:crypto";
import { Libc } from "../../hypercall/native/libc.ts";
import { EpollPoller } from "../../hypercall/native/poller.ts";
import { BLOCK_BYTES, Distribution, parseEndpoint, parseId } from "../../multicast/mod.ts";
import { nativeMemory } from "../../multicast/native_memory.ts";
import { nativeSealer } from "../../multicast/native_sealer.ts";
import { NativeUdp } from "../../multicast/native_udp.ts";

export const FAMILY = parseId("0123456789abcdef0123456789abcdef");
export const OBJECT = parseId("fedcba9876543210fedcba9876543210");
const KEY = new Uint8Array(32).fill(0x5a);
const TURN_MS = 50;
const IDLE_MS = 100;

/** The payload: no block is zero or compressible. */
export function payload(byteLength: number): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(byteLength);
  const words = new Uint32Array(bytes.buffer);
  let word = 12345;
  for (let n = 0; n < words.length; n++) {
    word ^= word << 13;
    word ^= word >>> 17;
    word ^= word << 5;
    words[n] = word;
  }
  return bytes;
}

function digest(bytes: Uint8Array): string {
  return createHash("sha256").update(bytes).digest("hex");
}

function say(line: string): void {
  Deno.stdout.writeSync(new TextEncoder().encode(`${line}\n`));
}

/** Lines of standard input. */
function lines(): ReadableStreamDefaultReader<string> {
  return Deno.stdin.readable.pipeThrough(new TextDecoderStream()).getReader();
}

const clockMs = () => performance.timeOrigin + performance.now();

/** Drives a distribution until `done`, giving the event loop a turn now and then. */
async function drive(distribution: Distribution, done: () => boolean): Promise<void> {
  const poller = new EpollPoller(new Libc());
  for (const fd of distribution.fds) poller.add(fd);
  let turnMs = performance.now() + TURN_MS;
  while (!done()) {
    const waitMs = (distribution.nextDeadlineMs() ?? Infinity) - performance.now();
    const fds = poller.wait(Math.min(IDLE_MS, Math.max(0, Math.round(waitMs))));
    for (const fd of fds) distribution.onReadable(fd, performance.now());
    const nowMs = performance.now();
    if ((distribution.nextDeadlineMs() ?? Infinity) <= nowMs) distribution.onTimer(nowMs);
    if (nowMs < turnMs) continue;
    turnMs = nowMs + TURN_MS;
    await new Promise((resolve) => setTimeout(resolve, 0));
  }
}

function open(address: string): Distribution {
  const local = parseEndpoint(address);
  const distribution = new Distribution({
    unicast: new NativeUdp({ local }),
    multicast: new NativeUdp({ local: { ip: local.ip, port: local.port + 1 }, groups: true }),
    memory: nativeMemory(),
    sealer: nativeSealer(),
    random48: () => Number(crypto.getRandomValues(new BigUint64Array(1))[0] ?? 0n) % 2 ** 48,
  });
  distribution.openFamily(FAMILY, { key: KEY });
  return distribution;
}

async function serve(address: string, byteLength: number): Promise<void> {
  const bytes = payload(byteLength);
  using distribution = open(address);
  distribution.addServed(FAMILY, OBJECT, byteLength / BLOCK_BYTES, {
    readBlock: (index) => bytes.subarray(index * BLOCK_BYTES, (index + 1) * BLOCK_BYTES),
  });
  let stopped = false;
  lines().read().then(() => {
    stopped = true;
  });
  say("ready");
  await drive(distribution, () => stopped);
  say(JSON.stringify(distribution.stats()));
}

async function receive(address: string, server: string, byteLength: number): Promise<void> {
  const bytes = new Uint8Array(byteLength).fill(1);
  const blocks = byteLength / BLOCK_BYTES;
  let left = blocks;
  using distribution = open(address);
  distribution.addWanted(FAMILY, OBJECT, {
    blocks,
    server: parseEndpoint(server),
    sink: {
      onBlock: (index, block) => {
        left--;
        if (block !== "zero") bytes.set(block.bytes, index * BLOCK_BYTES);
      },
      onAbsent: (index) => {
        throw new Error(`Block ${index} is absent`);
      },
      onGone: () => {
        throw new Error("The object is gone");
      },
      onStalled: (ms) => console.error(`no answer for ${ms} ms`),
    },
  });
  say("ready");
  await lines().read();
  const startedMs = clockMs();
  distribution.request(OBJECT, Array.from({ length: blocks }, (_, at) => at), { urgent: false }, performance.now());
  await drive(distribution, () => left === 0);
  const endedMs = clockMs();
  say(JSON.stringify({ startedMs, endedMs, digest: digest(bytes), stats: distribution.stats() }));
}

async function tcpServe(address: string, byteLength: number): Promise<void> {
  const [hostname = "", port = ""] = address.split(":");
  const bytes = payload(byteLength);
  const listener = Deno.listen({ hostname, port: Number(port) });
  lines().read().then(() => Deno.exit(0));
  say("ready");
  for await (const connection of listener) {
    (async () => {
      for (let at = 0; at < bytes.length;) at += await connection.write(bytes.subarray(at, at + (1 << 20)));
      connection.close();
    })();
  }
}

async function tcpReceive(server: string, byteLength: number): Promise<void> {
  const [hostname = "", port = ""] = server.split(":");
  const bytes = new Uint8Array(byteLength);
  say("ready");
  await lines().read();
  const startedMs = clockMs();
  const connection = await Deno.connect({ hostname, port: Number(port) });
  for (let at = 0; at < byteLength;) at += await connection.read(bytes.subarray(at)) ?? byteLength;
  const endedMs = clockMs();
  say(JSON.stringify({ startedMs, endedMs, digest: digest(bytes) }));
}

if (import.meta.main) {
  const [role, address = "", server = "", size = "0"] = Deno.args;
  const byteLength = Number(size);
  if (role === "serve") await serve(address, byteLength);
  else if (role === "receive") await receive(address, server, byteLength);
  else if (role === "tcp-serve") await tcpServe(address, byteLength);
  else if (role === "tcp-receive") await tcpReceive(server, byteLength);
  else if (role === "digest") say(digest(payload(byteLength)));
  Deno.exit(0);
}
