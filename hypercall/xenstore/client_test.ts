import { deepEqual, equal, ok, rejects } from "node:assert/strict";
import { XS } from "../abi/mod.ts";
import type { Domid, Gfn, Port } from "../ports.ts";
import { openXenstore } from "./client.ts";
import type { XenstoreError } from "./errors.ts";
import type { XenstoreTransport } from "./transport.ts";
import { connectXenstored, openXenbus } from "./transport.ts";
import { decodeStrings, encodeMessage, encodeStrings, type Message, MessageReader } from "./wire.ts";

type Reply = readonly [type: number, payload: Uint8Array] | undefined;

/** xenstored's end of a connection: answers each request by `handle`, or leaves it open for a later `send`. */
class Server implements XenstoreTransport {
  readonly requests: Message[] = [];
  readonly #reader = new MessageReader();
  readonly #chunks: Uint8Array[] = [];
  #wake: (() => void) | undefined;
  #closed = false;

  constructor(readonly handle: (message: Message, server: Server) => Reply) {}

  send(bytes: Uint8Array): Promise<void> {
    for (const message of this.#reader.push(bytes)) {
      this.requests.push(message);
      const reply = this.handle(message, this);
      if (reply !== undefined) this.answer(message, reply[0], reply[1]);
    }
    return Promise.resolve();
  }
  answer({ requestId, transactionId }: Message, type: number, payload: Uint8Array): void {
    this.raw(encodeMessage({ type, requestId, transactionId, payload }));
  }
  event(path: string, token: string): void {
    // As the kernel's device does it: ids are garbage.
    const payload = encodeStrings(path, token);
    this.raw(encodeMessage({ type: XS.WATCH_EVENT, requestId: 0xdead, transactionId: 0xbeef, payload }));
  }
  raw(bytes: Uint8Array): void {
    this.#chunks.push(bytes);
    this.#wake?.();
  }
  hangUp(): void {
    this.#closed = true;
    this.#wake?.();
  }
  async receive(): Promise<Uint8Array | undefined> {
    while (this.#chunks.length === 0 && !this.#closed) {
      const { promise, resolve } = Promise.withResolvers<void>();
      this.#wake = resolve;
      await promise;
    }
    return this.#chunks.shift();
  }
  [Symbol.dispose](): void {
    this.hangUp();
  }
}

const OK: Reply = [XS.WRITE, encodeStrings("OK")];
const okOf = ({ type }: Message): Reply => [type, encodeStrings("OK")];
const error = (code: string): Reply => [XS.ERROR, encodeStrings(code)];

/** Nodes in a map: enough for reads, writes and optimistic transactions. */
function store(initial: Record<string, string> = {}) {
  const nodes = new Map(Object.entries(initial));
  const conflicts = { left: 0 };
  const handle = (message: Message): Reply => {
    const [path = "", ...rest] = decodeStrings(message.payload);
    switch (message.type) {
      case XS.READ: {
        const value = nodes.get(path);
        return value === undefined ? error("ENOENT") : [XS.READ, new TextEncoder().encode(value)];
      }
      case XS.WRITE:
        nodes.set(path, rest.join("\0"));
        return OK;
      case XS.TRANSACTION_START:
        return [XS.TRANSACTION_START, encodeStrings("42")];
      case XS.TRANSACTION_END:
        return path === "T" && conflicts.left-- > 0 ? error("EAGAIN") : okOf(message);
      default:
        return okOf(message);
    }
  };
  return { nodes, conflicts, handle };
}

Deno.test("reads, writes and absence", async () => {
  const { nodes, handle } = store({ "/a": "1", "/empty": "" });
  await using xenstore = openXenstore(new Server(handle));
  equal(await xenstore.read("/a"), "1");
  equal(await xenstore.read("/empty"), "");
  equal(await xenstore.read("/absent"), undefined);
  await xenstore.write("/b", "zwei ü");
  equal(nodes.get("/b"), "zwei ü");
  await xenstore.mkdir("/c");
  await xenstore.remove("/c");
});

Deno.test("many requests are under way at once, answered in any order", async () => {
  const open: Message[] = [];
  const server = new Server((message) => {
    open.push(message);
    return undefined;
  });
  await using xenstore = openXenstore(server);
  const reads = Array.from({ length: 100 }, (_, index) => xenstore.read(`/n/${index}`));
  while (open.length < 100) await Promise.resolve();
  for (const message of open.toReversed()) {
    const [path = ""] = decodeStrings(message.payload);
    server.answer(message, XS.READ, new TextEncoder().encode(`value of ${path}`));
  }
  deepEqual(await Promise.all(reads), Array.from({ length: 100 }, (_, index) => `value of /n/${index}`));
});

Deno.test("errors carry xenstored's code and name the operation", async () => {
  const codes = ["EACCES", "ENOSPC", "EQUOTA\u0001"];
  await using xenstore = openXenstore(new Server(() => error(codes.shift() ?? "EINVAL")));
  await rejects(xenstore.read("/a"), { code: "EACCES", message: "Cannot read /a: EACCES (not allowed)" });
  await rejects(xenstore.write("/a", ""), { code: "ENOSPC" });
  await rejects(xenstore.mkdir("/a"), { code: "EIO" });
});

Deno.test("paths and sizes are checked before anything is sent", async () => {
  const server = new Server(okOf);
  await using xenstore = openXenstore(server);
  for (const path of ["", "/a/", "/a//b", "/a b", "/ü", "/a\0b", "/a\n"]) {
    await rejects(xenstore.read(path), { code: "EINVAL" }, JSON.stringify(path));
  }
  await rejects(xenstore.read("/" + "a".repeat(3072)), { code: "E2BIG" });
  await rejects(xenstore.read("a".repeat(2049)), { code: "E2BIG" });
  await rejects(xenstore.write("/a", "x".repeat(4094)), { code: "E2BIG" });
  await rejects(xenstore.setPermissions("/a", []), { code: "EINVAL" });
  await rejects(xenstore.setPermissions("/a", [{ domid: 0x7ff0 as Domid, access: "read" }]), { code: "EINVAL" });
  equal(server.requests.length, 0);
});

Deno.test("permissions are typed both ways", async () => {
  let sent: string[] = [];
  const server = new Server((message) => {
    if (message.type === XS.GET_PERMS) return [XS.GET_PERMS, encodeStrings("n0", "r7", "b12")];
    sent = decodeStrings(message.payload);
    return okOf(message);
  });
  await using xenstore = openXenstore(server);
  const permissions = await xenstore.getPermissions("/a");
  deepEqual(permissions, [{ domid: 0, access: "none" }, { domid: 7, access: "read" }, { domid: 12, access: "both" }]);
  await xenstore.setPermissions("/a", permissions);
  deepEqual(sent, ["/a", "n0", "r7", "b12"]);
});

Deno.test("a large directory is listed in parts, and begun again when it changes meanwhile", async () => {
  const names = Array.from({ length: 900 }, (_, index) => `node-${index}`);
  const all = encodeStrings(...names);
  let generation = 1;
  let parts = 0;
  const server = new Server((message) => {
    if (message.type === XS.DIRECTORY) return error("E2BIG");
    if (++parts === 2) generation++;
    const offset = Number(decodeStrings(message.payload)[1]);
    const cut = all.subarray(offset, offset + 4000);
    const whole = cut.subarray(0, cut.lastIndexOf(0) + 1);
    const last = offset + whole.byteLength === all.byteLength ? [0] : [];
    return [XS.DIRECTORY_PART, Uint8Array.of(...encodeStrings(String(generation)), ...whole, ...last)];
  });
  await using xenstore = openXenstore(server);
  deepEqual(await xenstore.list("/big"), names);
  ok(parts > 3);
});

Deno.test("a directory that never ends, or never settles, is given up", async () => {
  let generation = 0;
  const endless = new Server(({ type }) =>
    type === XS.DIRECTORY ? error("E2BIG") : [XS.DIRECTORY_PART, encodeStrings("1", "x".repeat(4000))]
  );
  await using first = openXenstore(endless);
  await rejects(first.list("/big"), { code: "E2BIG" });
  const unsettled = new Server(({ type }) =>
    type === XS.DIRECTORY ? error("E2BIG") : [XS.DIRECTORY_PART, encodeStrings(String(++generation), "x")]
  );
  await using second = openXenstore(unsettled);
  await rejects(second.list("/big"), { code: "EAGAIN" });
});

Deno.test("a transaction is tried again while others disturb it, and its requests carry its id", async () => {
  const { nodes, conflicts, handle } = store({ "/counter": "1" });
  const server = new Server(handle);
  await using xenstore = openXenstore(server);
  conflicts.left = 2;
  let runs = 0;
  const result = await xenstore.transaction(async (inside) => {
    runs++;
    await inside.write("/counter", String(Number(await inside.read("/counter")) + 1));
    return "done";
  });
  deepEqual([result, runs, nodes.get("/counter")], ["done", 3, "4"]);
  const inside = server.requests.filter(({ type }) => type === XS.READ || type === XS.WRITE);
  ok(inside.every(({ transactionId }) => transactionId === 42));
  conflicts.left = 1000;
  await rejects(xenstore.transaction(() => Promise.resolve()), { code: "EAGAIN" });
  equal(conflicts.left, 1000 - 32);
});

Deno.test("an error inside a transaction undoes it", async () => {
  const server = new Server(store().handle);
  await using xenstore = openXenstore(server);
  await rejects(xenstore.transaction(() => Promise.reject(new Error("no"))), /^Error: no$/);
  const last = server.requests.at(-1);
  deepEqual([last?.type, decodeStrings(last?.payload ?? new Uint8Array())], [XS.TRANSACTION_END, ["F"]]);
});

Deno.test("watches get their own events until they end", async () => {
  const tokens: string[] = [];
  const server = new Server((message, self) => {
    const [path = "", token = ""] = decodeStrings(message.payload);
    if (message.type === XS.WATCH) {
      tokens.push(token);
      self.event(path, token);
    }
    if (message.type === XS.MKDIR) return okOf(message);
    // The kernel's device answers these with id 0.
    self.answer({ ...message, requestId: 0 }, message.type, encodeStrings("OK"));
    return undefined;
  });
  await using xenstore = openXenstore(server);
  const seen: string[] = [];
  const watch = await xenstore.watch("/a", (path) => seen.push(`a:${path}`));
  const other = await xenstore.watch("/b", (path) => seen.push(`b:${path}`));
  server.event("/a/x", tokens[0] ?? "");
  server.event("/b/y", tokens[1] ?? "");
  server.event("/c", "a token of nobody");
  await xenstore.mkdir("/barrier");
  await watch[Symbol.asyncDispose]();
  server.event("/a/z", tokens[0] ?? "");
  await other[Symbol.asyncDispose]();
  await other[Symbol.asyncDispose]();
  deepEqual(seen, ["a:/a", "b:/b", "a:/a/x", "b:/b/y"]);
});

Deno.test("an iterable watch counts a path once, never grows, and ends with the connection", async () => {
  let token = "";
  const server = new Server((message) => {
    if (message.type === XS.WATCH) token = decodeStrings(message.payload)[1] ?? "";
    return okOf(message);
  });
  const xenstore = openXenstore(server);
  const events = await xenstore.watchEvents("/guest");
  for (let count = 0; count < 5; count++) server.event("/guest/same", token);
  for (let count = 0; count < 3000; count++) server.event(`/guest/${count}`, token);
  await xenstore.mkdir("/barrier");
  server.hangUp();
  const seen: string[] = [];
  await rejects(async () => {
    for await (const path of events) seen.push(path);
  }, { code: "ECONNRESET" });
  ok(seen.includes("/guest"), "what was dropped is told by the watched path");
  ok(seen.length <= 1024);
  equal(new Set(seen).size, seen.length);
  equal((await xenstore.closed).code, "ECONNRESET");
});

Deno.test("a lost connection fails what waits and what comes after", async () => {
  const server = new Server(() => undefined);
  const xenstore = openXenstore(server);
  const waiting = [xenstore.read("/a"), xenstore.write("/b", "")];
  server.hangUp();
  for (const request of [...waiting, xenstore.read("/c")]) {
    await rejects(request, (error: XenstoreError) => error.code === "ECONNRESET" && error.cause instanceof Error);
  }
  await xenstore[Symbol.asyncDispose]();
});

Deno.test("a server that breaks the protocol ends the connection, not the program", async () => {
  const wild: ((server: Server, message: Message) => void)[] = [
    (server) => server.raw(new Uint8Array(16).fill(0xff)),
    (server, message) => server.answer({ ...message, requestId: 999 }, XS.READ, encodeStrings("x")),
    (server) => server.raw(crypto.getRandomValues(new Uint8Array(64)).fill(0xff, 12, 16)),
  ];
  for (const act of wild) {
    const server = new Server((message, self) => void act(self, message));
    await using xenstore = openXenstore(server);
    await rejects(xenstore.read("/a"), { code: "ECONNRESET" });
  }
  await using mixed = openXenstore(new Server(() => [XS.WRITE, encodeStrings("OK")]));
  await rejects(mixed.read("/a"), { code: "EIO" });
});

Deno.test("requests under way are bounded", async () => {
  await using xenstore = openXenstore(new Server(() => undefined));
  const waiting = Array.from({ length: 4096 }, () => xenstore.read("/a").catch(() => undefined));
  await rejects(xenstore.read("/a"), { code: "ENOBUFS" });
  await xenstore[Symbol.asyncDispose]();
  await Promise.all(waiting);
});

Deno.test("dom0's requests are decimal numbers", async () => {
  const server = new Server((message) =>
    message.type === XS.IS_DOMAIN_INTRODUCED ? [message.type, encodeStrings("T")] : okOf(message)
  );
  await using xenstore = openXenstore(server);
  const domid = 7 as Domid;
  await xenstore.introduce(domid, 0xfeffcn as Gfn, 3 as Port);
  equal(await xenstore.isIntroduced(domid), true);
  await xenstore.resume(domid);
  await xenstore.release(domid);
  deepEqual(server.requests.map(({ type, payload }) => [type, ...decodeStrings(payload)]), [
    [XS.INTRODUCE, "7", "1044476", "3"],
    [XS.IS_DOMAIN_INTRODUCED, "7"],
    [XS.RESUME, "7"],
    [XS.RELEASE, "7"],
  ]);
});

Deno.test("the transports carry bytes both ways, and say where nothing answers", async () => {
  const directory = await Deno.makeTempDir();
  try {
    const path = `${directory}/socket`;
    await rejects(connectXenstored(path), { code: "ENOENT", message: /does xenstored run here/ });
    const listener = Deno.listen({ transport: "unix", path });
    const accepted = listener.accept();
    using transport = await connectXenstored(path);
    const peer = await accepted;
    await transport.send(Uint8Array.of(1, 2, 3));
    const buffer = new Uint8Array(8);
    equal(await peer.read(buffer), 3);
    await peer.write(Uint8Array.of(9));
    deepEqual(await transport.receive(), Uint8Array.of(9));
    peer.close();
    equal(await transport.receive(), undefined);
    listener.close();

    // A pipe opened for both gives back what was written, as one device does with read and write at once.
    const pipe = `${directory}/pipe`;
    const { success } = await new Deno.Command("mkfifo", { args: [pipe] }).output();
    ok(success);
    const xenbus = openXenbus(pipe);
    const received = xenbus.receive();
    await xenbus.send(Uint8Array.of(5, 6));
    deepEqual(await received, Uint8Array.of(5, 6));
    xenbus[Symbol.dispose]();
    let failure: unknown;
    try {
      openXenbus(`${directory}/none`);
    } catch (error) {
      failure = error;
    }
    ok(String(failure).includes("is this a Xen domain?"));
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
});
