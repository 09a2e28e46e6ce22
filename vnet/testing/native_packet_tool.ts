/**
 * A child process of the network tests, run with FFI: raw (AF_PACKET) and UDP sockets in any number of network namespaces.
 * Reads one JSON request a line, answers each with one JSON line, ends with its input. See `packet_tool.ts`.
 */
import type { PacketRequest } from "./packet_tool.ts";

const libc = Deno.dlopen("libc.so.6", {
  open: { parameters: ["buffer", "i32"], result: "i32" }, // int open(const char *, int)
  close: { parameters: ["i32"], result: "i32" },
  setns: { parameters: ["i32", "i32"], result: "i32" }, // int setns(int fd, int nstype)
  socket: { parameters: ["i32", "i32", "i32"], result: "i32" },
  bind: { parameters: ["i32", "buffer", "u32"], result: "i32" },
  setsockopt: { parameters: ["i32", "i32", "i32", "buffer", "u32"], result: "i32" },
  send: { parameters: ["i32", "buffer", "usize", "i32"], result: "isize" },
  sendto: { parameters: ["i32", "buffer", "usize", "i32", "buffer", "u32"], result: "isize" },
  recv: { parameters: ["i32", "buffer", "usize", "i32"], result: "isize" },
  if_nametoindex: { parameters: ["buffer"], result: "u32" },
  __errno_location: { parameters: [], result: "pointer" },
}).symbols;

const AF_INET = 2, AF_INET6 = 10, AF_PACKET = 17;
const SOCK_DGRAM = 2, SOCK_RAW = 3;
const CLONE_NEWNET = 0x40000000;
const MSG_DONTWAIT = 0x40;
const SOL_SOCKET = 1, SO_RCVBUF = 8;
const SOL_PACKET = 263, PACKET_IGNORE_OUTGOING = 23;
const ETH_P_ALL_BE = 0x0300;
/** Frames taken off one socket by one request. */
const MAX_FRAMES = 20_000;

const cString = (text: string) => new TextEncoder().encode(`${text}\0`);

function checked(what: string, result: number | bigint): number {
  if (Number(result) >= 0) return Number(result);
  const location = libc.__errno_location();
  throw new Error(`${what}: errno ${location === null ? "unknown" : new Deno.UnsafePointerView(location).getInt32()}`);
}

/** Runs `task` with this thread in the namespace. It must not wait for anything: other code would run there too. */
function within<T>(namespace: string, task: () => T): T {
  const home = checked("open", libc.open(cString("/proc/thread-self/ns/net"), 0));
  const there = checked(`open ${namespace}`, libc.open(cString(`/run/netns/${namespace}`), 0));
  try {
    checked(`enter ${namespace}`, libc.setns(there, CLONE_NEWNET));
    return task();
  } finally {
    checked("leave the namespace", libc.setns(home, CLONE_NEWNET));
    libc.close(home);
    libc.close(there);
  }
}

function intBytes(value: number): Uint8Array<ArrayBuffer> {
  return new Uint8Array(new Int32Array([value]).buffer);
}

/** struct sockaddr_in or sockaddr_in6 (netinet/in.h). */
function socketAddress(address: readonly number[], port: number): Uint8Array<ArrayBuffer> {
  const six = address.length === 16;
  const bytes = new Uint8Array(six ? 28 : 16);
  const view = new DataView(bytes.buffer);
  view.setUint16(0, six ? AF_INET6 : AF_INET, true);
  view.setUint16(2, port);
  bytes.set(address, six ? 8 : 4);
  return bytes;
}

function openRaw(namespace: string, device: string): number {
  return within(namespace, () => {
    const fd = checked("socket", libc.socket(AF_PACKET, SOCK_RAW, ETH_P_ALL_BE));
    const address = new Uint8Array(20); // struct sockaddr_ll (linux/if_packet.h)
    const view = new DataView(address.buffer);
    view.setUint16(0, AF_PACKET, true);
    view.setUint16(2, ETH_P_ALL_BE, true);
    const index = libc.if_nametoindex(cString(device));
    if (index === 0) throw new Error(`no device ${device} in ${namespace}`);
    view.setInt32(4, index, true);
    checked("bind", libc.bind(fd, address, 20));
    checked("ignore outgoing", libc.setsockopt(fd, SOL_PACKET, PACKET_IGNORE_OUTGOING, intBytes(1), 4));
    checked("receive buffer", libc.setsockopt(fd, SOL_SOCKET, SO_RCVBUF, intBytes(8 << 20), 4));
    return fd;
  });
}

function openUdp(namespace: string, address: readonly number[], port: number): number {
  return within(namespace, () => {
    const fd = checked("socket", libc.socket(address.length === 16 ? AF_INET6 : AF_INET, SOCK_DGRAM, 0));
    const bytes = socketAddress(address, port);
    checked("bind", libc.bind(fd, bytes, bytes.length));
    return fd;
  });
}

function drain(fd: number): string[] {
  const frames: string[] = [];
  const buffer = new Uint8Array(65536);
  while (frames.length < MAX_FRAMES) {
    const length = Number(libc.recv(fd, buffer, BigInt(buffer.length), MSG_DONTWAIT));
    if (length < 0) break;
    frames.push(buffer.subarray(0, length).toHex());
  }
  return frames;
}

function serve(request: PacketRequest): number | string[] {
  switch (request.do) {
    case "raw":
      return openRaw(request.namespace, request.device);
    case "udp":
      return openUdp(request.namespace, request.address, request.port);
    case "send":
      for (const frame of request.frames) {
        const bytes = Uint8Array.fromHex(frame);
        checked("send", libc.send(request.fd, bytes, BigInt(bytes.length), 0));
      }
      return 0;
    case "sendto": {
      const bytes = Uint8Array.fromHex(request.frame);
      const to = socketAddress(request.address, request.port);
      return checked("sendto", libc.sendto(request.fd, bytes, BigInt(bytes.length), 0, to, to.length));
    }
    case "drain":
      return drain(request.fd);
    case "close":
      return libc.close(request.fd);
  }
}

if (import.meta.main) {
  let rest = "";
  for await (const chunk of Deno.stdin.readable.pipeThrough(new TextDecoderStream())) {
    const lines = (rest + chunk).split("\n");
    rest = lines.pop() ?? "";
    for (const line of lines) {
      let answer: unknown;
      try {
        answer = { result: serve(JSON.parse(line)) };
      } catch (error) {
        answer = { error: String(error) };
      }
      await Deno.stdout.write(new TextEncoder().encode(`${JSON.stringify(answer)}\n`));
    }
  }
}
