import assert from "node:assert/strict";
import { join } from "node:path";
import { connect } from "node:tls";
import fc from "fast-check";
import { encodeDescriptor, shapeOnly } from "../fork/descriptor.ts";
import { peerApp } from "./app.ts";
import { PeerClient } from "./client.ts";
import { Cluster, cpuPolicy, descriptorOf, FakeHost, FakeMemory, FAMILY, guestShape } from "./cluster_fake.ts";
import { FamilyKeys } from "./family_keys.ts";
import { Guests } from "./guests.ts";
import { listenForPeers } from "./https_server.ts";
import { keygen } from "./keygen.ts";
import { loadTls, type TlsIdentity } from "./tls.ts";
import * as wire from "./wire.ts";

const INSTANCE = "1".repeat(32);
const SESSION = "2".repeat(32);
const CLONE = { id: 1, name: "n", uuid: "00000000-0000-4000-8000-000000000001" };
const hello = { instance: INSTANCE, session: SESSION, fresh: true, seen: 0, holdMs: 0 };
const limits = { timeoutMs: 5000 };
const inSession = { ...limits, session: SESSION };

/** Host b, alone, and what it takes to call it. `a` and `c` are its peers; `d` has a certificate and is none. */
async function target(maxBodyBytes?: number) {
  const stack = new AsyncDisposableStack();
  const cluster = stack.use(await Cluster.make(["a", "b", "c", "d"]));
  const host = new FakeHost("b");
  const memory = new FakeMemory();
  const guests = stack.use(
    new Guests({
      local: host,
      memory,
      keys: new FamilyKeys(),
      cpuPolicy: () => cpuPolicy(),
      deviceExists: () => Promise.resolve(false),
      nowMs: () => performance.now(),
    }, 60_000),
  );
  const app = peerApp(guests, { host: "b", instance: INSTANCE, version: "1", peers: ["a", "c"] });
  const listener = stack.use(
    await listenForPeers({
      address: "127.0.0.1",
      port: 0,
      tls: await cluster.tls("b"),
      peers: 2,
      ...(maxBodyBytes === undefined ? {} : { maxBodyBytes }),
    }, app),
  );
  const client = (self: string, tls: TlsIdentity, name = "b", protocol?: number) =>
    stack.use(new PeerClient(self, { name, address: "127.0.0.1", port: listener.port }, tls, protocol));
  return {
    cluster,
    host,
    memory,
    guests,
    listener,
    client,
    [Symbol.asyncDispose]: () => stack.disposeAsync(),
  };
}

function fails(work: Promise<unknown>, code: wire.PeerErrorCode, message: RegExp): Promise<void> {
  return work.then(() => assert.fail("it was let through"), (error) => {
    assert(error instanceof wire.PeerError, String(error));
    assert.equal(error.code, code, error.message);
    assert.match(error.message, message);
  });
}

Deno.test("certificates: another authority's, none, another host's, and a stranger's are refused", async () => {
  await using b = await target();
  const good = await b.cluster.tls("a");
  await b.client("a", good).call("hello", { json: hello }, wire.HelloReply, limits);

  const other = join(b.cluster.directory, "other");
  await keygen(other, ["a", "b"]);
  const forged = await loadTls({
    authority: join(b.cluster.directory, "authority.pem"),
    certificate: join(other, "a.pem"),
    key: join(other, "a.key"),
  });
  await fails(b.client("a", forged).call("hello", { json: hello }, wire.HelloReply, limits), "unreachable", /host b/);
  // The caller does not take a server of another authority for b either.
  const misled = { ...good, authority: await Deno.readTextFile(join(other, "authority.pem")) };
  await fails(b.client("a", misled).call("hello", { json: hello }, wire.HelloReply, limits), "identity", /certificate/);
  // Nor a host for another one.
  await fails(
    b.client("a", good, "c").call("hello", { json: hello }, wire.HelloReply, limits),
    "identity",
    /certificate/i,
  );
  // One host cannot speak for another, nor one that is no peer for itself.
  const mallory = await b.cluster.tls("c");
  await fails(
    b.client("a", mallory).call("hello", { json: hello }, wire.HelloReply, limits),
    "identity",
    /not that of a/,
  );
  const stranger = await b.cluster.tls("d");
  await fails(
    b.client("d", stranger).call("hello", { json: hello }, wire.HelloReply, limits),
    "identity",
    /no peer "d"/,
  );

  const refused = await new Promise<string>((resolve) => {
    const socket = connect({ host: "127.0.0.1", port: b.listener.port, ca: good.authority, servername: "b" });
    socket.on("secureConnect", () => socket.write("POST /v1/hello HTTP/1.1\r\nhost: b\r\ncontent-length: 0\r\n\r\n"));
    socket.on("data", () => resolve("it answered"));
    socket.on("error", (error) => resolve(error.message));
    socket.on("close", () => resolve("closed"));
  });
  assert.notEqual(refused, "it answered");
});

Deno.test("another version of the protocol is told by both sides, with both numbers", async () => {
  await using b = await target();
  const tls = await b.cluster.tls("a");
  const later = b.client("a", tls, "b", 2);
  await fails(
    later.call("hello", { json: hello }, wire.HelloReply, limits),
    "protocol",
    /b speaks version 1.*version 2/,
  );
  const response = await peerApp(b.guests, {
    host: "b",
    instance: INSTANCE,
    version: "1",
    peers: ["a"],
  })(new Request("https://b/v1/hello", { method: "POST", headers: { [wire.HOST_HEADER]: "a" } }), ["a"]);
  assert.equal(response.status, 426);
  assert.match(await response.text(), /Host b speaks version 1 of the peers' protocol, a version none/);
});

Deno.test("bodies: too large, cut short, no JSON, unknown members, no descriptor, a damaged one", async () => {
  await using b = await target(100_000);
  const call = b.client("a", await b.cluster.tls("a"));
  await call.call("hello", { json: hello }, wire.HelloReply, limits);
  const shape = encodeDescriptor(shapeOnly(guestShape(), FAMILY));
  const json = { wanted: 1 };
  const capacity = (message: wire.Message) => call.call("capacity", message, wire.CapacityReply, inSession);
  assert.deepEqual(await capacity({ json, attachment: shape }), { room: 1 });
  await fails(capacity({ json, attachment: new Uint8Array(200_000) }), "too-large", /at most 100000 bytes/);
  await fails(capacity({ json }), "bad-message", /no descriptor/);
  await fails(capacity({ json: { wanted: 0 }, attachment: shape }), "bad-message", /wanted/);
  await fails(capacity({ json: { wanted: 1, more: 2 }, attachment: shape }), "bad-message", /more/i);
  const damaged = shape.slice();
  damaged[40] = (damaged[40] ?? 0) ^ 1;
  await fails(capacity({ json, attachment: damaged }), "bad-message", /checksum/);
  await fails(call.call("nothing", { json }, wire.CapacityReply, inSession), "bad-message", /no such call/);
  assert.deepEqual(await capacity({ json, attachment: shape }), { room: 1 });
});

Deno.test("a guest that this processor cannot run is refused before anything is built, by what is missing", async () => {
  await using b = await target();
  const call = b.client("a", await b.cluster.tls("a"));
  await call.call("hello", { json: hello }, wire.HelloReply, limits);
  const shape = encodeDescriptor(shapeOnly(guestShape(cpuPolicy(1 << 5)), FAMILY));
  const json = { ticket: "t", family: FAMILY, clones: [CLONE] };
  const missing = /Host b cannot run the guest: it lacks AVX2/;
  await fails(call.call("prepare", { json, attachment: shape }, wire.PrepareReply, inSession), "cpu", missing);
  await fails(
    call.call("capacity", { json: { wanted: 1 }, attachment: shape }, wire.CapacityReply, inSession),
    "cpu",
    missing,
  );
  assert.equal(b.host.prepares.length, 0);
});

Deno.test("a coordinator has no say over another's clones, nor over this host's own", async () => {
  await using b = await target();
  const a = b.client("a", await b.cluster.tls("a"));
  const c = b.client("c", await b.cluster.tls("c"));
  const session = "3".repeat(32);
  await a.call("hello", { json: hello }, wire.HelloReply, limits);
  await c.call("hello", { json: { ...hello, session } }, wire.HelloReply, limits);
  await b.host.prepare({ ticket: "own", family: FAMILY, clones: [CLONE], shape: guestShape() });
  const shape = encodeDescriptor(shapeOnly(guestShape(), FAMILY));
  const json = { ticket: "t", family: FAMILY, clones: [CLONE] };
  await a.call("prepare", { json, attachment: shape }, wire.PrepareReply, inSession);

  const theirs = { ...limits, session };
  for (const ticket of ["t", "own"]) {
    await c.call("end", { json: { ticket, ids: [1] } }, wire.EndReply, theirs);
    const { clones } = await c.call("memory", { json: { ticket } }, wire.MemoryReply, theirs);
    assert.deepEqual(clones, []);
  }
  await fails(
    c.call(
      "prepare",
      { json: { ...json, clones: [{ ...CLONE, id: 2 }] }, attachment: shape },
      wire.PrepareReply,
      theirs,
    ),
    "bad-message",
    /not this host's/,
  );
  // Another's session cannot be spoken in.
  await fails(c.call("end", { json: { ticket: "t", ids: [1] } }, wire.EndReply, inSession), "no-session", /session/);
  assert(b.host.find("t", 1) !== undefined && b.host.find("own", 1) !== undefined);

  const start = {
    ticket: "t",
    nodes: [[1, { "data/snowflock/id": "1" }]],
    channel: { family: FAMILY, key: "0".repeat(64), mode: "unicast", server: "10.0.0.1:7078" },
    fill: false,
  };
  const attachment = encodeDescriptor(descriptorOf());
  const begin = (json: unknown) => a.call("start", { json, attachment }, wire.StartReply, inSession);
  await fails(begin({ ...start, nodes: [[1, { "../../0/name": "x" }]] }), "bad-message", /nodes/);
  await fails(begin({ ...start, nodes: [[1, { "control/shutdown": "x" }]] }), "bad-message", /nodes/);
  await fails(begin({ ...start, channel: { ...start.channel, family: "e".repeat(32) } }), "bad-message", /family/);
  await begin(start);
  await a.call("prepare", { json: { ...json, ticket: "u" }, attachment: shape }, wire.PrepareReply, inSession);
  const another = { ...start, ticket: "u", channel: { ...start.channel, key: "1".repeat(64) } };
  await fails(begin(another), "bad-message", /another key/);
});

Deno.test("sessions: a late heartbeat of one that is over takes no later one's place", async () => {
  await using b = await target();
  const a = b.client("a", await b.cluster.tls("a"));
  await fails(
    a.call("hello", { json: { ...hello, fresh: false } }, wire.HelloReply, limits),
    "no-session",
    /no such session/,
  );
  await a.call("hello", { json: hello }, wire.HelloReply, limits);
  const later = { ...hello, session: "4".repeat(32) };
  await a.call("hello", { json: later }, wire.HelloReply, limits);
  await fails(a.call("hello", { json: hello }, wire.HelloReply, limits), "no-session", /no such session/);
  await a.call("hello", { json: { ...later, fresh: false } }, wire.HelloReply, limits);
});

Deno.test("messages: what was written is read; any other bytes are refused or mean the same", () => {
  fc.assert(fc.property(fc.jsonValue(), fc.option(fc.uint8Array(), { nil: undefined }), (json, attachment) => {
    const message = attachment === undefined ? { json } : { json, attachment };
    const { type, body } = wire.encodeMessage(message);
    const read = wire.decodeMessage(type, body);
    assert.deepEqual(JSON.stringify(read.json), JSON.stringify(json));
    assert.deepEqual(read.attachment?.slice(), attachment);
  }));
  fc.assert(
    fc.property(fc.constantFrom(wire.JSON_TYPE, wire.ATTACHED_TYPE, "text/plain"), fc.uint8Array(), (type, body) => {
      try {
        wire.decodeMessage(type, body);
      } catch (error) {
        assert(error instanceof wire.PeerError && error.code === "bad-message");
      }
    }),
  );
});

Deno.test("every call: made-up JSON is refused with a reason, and changes nothing", async () => {
  await using b = await target();
  const app = peerApp(b.guests, { host: "b", instance: INSTANCE, version: "1", peers: ["a"] });
  b.guests.hello("a", hello);
  const attachment = encodeDescriptor(descriptorOf());
  const paths = fc.constantFrom("hello", "capacity", "prepare", "start", "end", "memory");
  await fc.assert(
    fc.asyncProperty(paths, fc.jsonValue(), async (path, json) => {
      const { type, body } = wire.encodeMessage({ json, attachment });
      const headers = {
        [wire.HOST_HEADER]: "a",
        [wire.PROTOCOL_HEADER]: `${wire.PROTOCOL}`,
        [wire.SESSION_HEADER]: SESSION,
        "content-type": type,
      };
      const request = new Request(`https://b/v1/${path}`, { method: "POST", headers, body: body.slice() });
      const response = await app(request, ["a"]);
      assert.equal(response.status, 400);
      assert.equal(wire.ErrorReply.parse(await response.json()).error.code, "bad-message");
    }),
    { numRuns: 300 },
  );
  assert.equal(b.host.prepares.length + b.host.starts.length + b.host.clones.size, 0);
});
