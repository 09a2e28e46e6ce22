import assert from "node:assert/strict";
import { AgentUnreachable, ApiClient } from "./client.ts";
import { EngineError } from "./engine.ts";
import { FakeEngine } from "./engine_fake.ts";
import { LogBuffer } from "./log_buffer.ts";
import { serveApi } from "./server.ts";
import { SocketError } from "./socket.ts";

class World implements AsyncDisposable {
  readonly engine = new FakeEngine();
  readonly logs = new LogBuffer();
  readonly directory = Deno.makeTempDirSync({ prefix: "snowflock-api-" });
  readonly socket = `${this.directory}/run/agent.sock`;
  readonly client = new ApiClient(this.socket);
  server: AsyncDisposable | undefined;

  async serve(): Promise<this> {
    const { engine, logs, socket } = this;
    this.server = await serveApi({ engine, logs, socket, version: "1.2.3", host: "h1" });
    return this;
  }

  /** A raw call. */
  async raw(method: string, path: string, body?: BodyInit): Promise<{ status: number; body: unknown }> {
    using client = Deno.createHttpClient({ proxy: { transport: "unix", path: this.socket } });
    const response = await fetch(`http://localhost${path}`, {
      client,
      method,
      ...(body === undefined ? {} : { body }),
    });
    const text = await response.text();
    return { status: response.status, body: text === "" ? undefined : JSON.parse(text) };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.client[Symbol.dispose]();
    await this.server?.[Symbol.asyncDispose]();
    Deno.removeSync(this.directory, { recursive: true });
  }
}

function rejects(promise: Promise<unknown>, code: string): Promise<void> {
  return assert.rejects(promise, (error) => error instanceof EngineError && error.code === code);
}

Deno.test("every call of the engine, over the socket", async () => {
  await using world = await new World().serve();
  const { client, engine } = world;
  assert.deepEqual(await client.version(), { version: "1.2.3", host: "h1" });
  const ticket = await client.requestTicket({ domain: "web", clones: 2 });
  assert.equal(ticket.ticket, "t1");
  assert.deepEqual(await client.requestTicket({ domain: 8, clones: 1 }), engine.list()[0]);
  const report = await client.clone("t1", { fill: true });
  assert.equal(report.clones.length, 2);
  assert.equal(report.pauseMs, 10);
  assert.deepEqual(await client.identity(21), { id: 2, ticket: "t1", family: "web" });
  assert.deepEqual(await client.domains(), engine.domains());
  assert.deepEqual(await client.show("20"), engine.show("20"));
  assert.deepEqual(await client.show("t1"), engine.show("t1"));
  const joined = client.join("t1");
  await client.cloneExited(20, 4, "data\n");
  await client.cloneExited(21, 0, "");
  assert.deepEqual((await joined).map(({ id, status, data }) => ({ id, status, data })), [
    { id: 1, status: 4, data: "data\n" },
    { id: 2, status: 0, data: "" },
  ]);
  await client.kill("t2");
  assert.deepEqual((await client.list()).map(({ ticket, state }) => [ticket, state]), [["t2", "ended"], [
    "t1",
    "ended",
  ]]);
  assert.equal((await client.checkpoint("db")).ticket, "t3");
});

Deno.test("errors keep their code and have a fitting status", async () => {
  await using world = await new World().serve();
  const { client, engine } = world;
  await rejects(client.clone("t9"), "no-such-ticket");
  await rejects(client.requestTicket({ domain: "none", clones: 1 }), "no-such-domain");
  await rejects(client.requestTicket({ domain: 7, clones: 0 }), "bad-count");
  await rejects(client.show("nothing/at%all"), "no-such-ticket");
  await rejects(client.cloneExited(7, 0, ""), "not-yours");
  await rejects(client.cloneExited(7, 256, ""), "bad-request");
  engine.capacity = 0;
  await rejects(client.requestTicket({ domain: 7, clones: 1 }), "no-memory");
  engine.list = () => {
    throw new Error("secret cause");
  };
  assert.deepEqual(await world.raw("GET", "/v1/tickets"), {
    status: 500,
    body: { error: { code: "failed", message: "The agent failed; its log says why" } },
  });
  const status = async (method: string, path: string, body?: BodyInit) => (await world.raw(method, path, body)).status;
  assert.equal(await status("POST", "/v1/tickets", '{"domain":7,"clones":1}'), 507);
  assert.equal(await status("POST", "/v1/tickets", "{"), 400);
  assert.equal(await status("POST", "/v1/tickets", '{"domain":7,"clones":1,"colour":2}'), 400);
  assert.equal(await status("POST", "/v1/tickets", '{"domain":7,"clones":"1"}'), 400);
  assert.equal(await status("POST", "/v1/tickets", "x".repeat(65 * 1024)), 413);
  // Without a length, in pieces.
  const pieces = new ReadableStream<Uint8Array>({
    start(controller) {
      for (let n = 0; n < 70; n++) controller.enqueue(new Uint8Array(1024));
      controller.close();
    },
  });
  assert.equal(await status("POST", "/v1/tickets", pieces), 413);
  assert.equal(await status("GET", `/v1/show/${"x".repeat(129)}`), 400);
  assert.equal(await status("GET", "/v2"), 404);
  assert.equal(await status("DELETE", "/v1/tickets/t9"), 404);
});

Deno.test("a join ends with its client, or at its time", async () => {
  await using world = await new World().serve();
  const { client, engine } = world;
  await client.requestTicket({ domain: 7, clones: 1 });
  await client.clone("t1");
  await rejects(client.join("t1", { timeoutMs: 20 }), "timeout");
  const abort = new AbortController();
  const joined = client.join("t1", {}, { signal: abort.signal });
  while (engine.calls.filter((call) => call === "join t1").length < 2) await new Promise((go) => setTimeout(go, 1));
  abort.abort();
  await rejects(joined, "aborted");
  await client.kill("t1");
});

Deno.test("the socket is its owner's alone", async () => {
  await using world = await new World().serve();
  assert.equal((Deno.statSync(world.socket).mode ?? 0) & 0o777, 0o600);
  assert.equal((Deno.statSync(`${world.directory}/run`).mode ?? 0) & 0o777, 0o700);
});

Deno.test("a live agent is not displaced, a dead one's socket is, another's file is not", async () => {
  await using world = await new World().serve();
  const { engine, logs, socket } = world;
  const options = { engine, logs, socket, version: "2", host: "h" };
  await assert.rejects(
    serveApi(options),
    (error) => error instanceof SocketError && /Another agent/.test(error.message),
  );
  assert.equal((await world.client.version()).version, "1.2.3");
  await world.server?.[Symbol.asyncDispose]();
  world.server = undefined;
  assert.throws(() => Deno.lstatSync(socket), Deno.errors.NotFound);

  // What SIGKILL leaves.
  const script = `Deno.listen({ transport: "unix", path: ${JSON.stringify(socket)} }); Deno.kill(Deno.pid, "SIGKILL")`;
  await new Deno.Command(Deno.execPath(), { args: ["eval", script], stderr: "null" }).output();
  assert.equal(Deno.lstatSync(socket).isSocket, true);
  await assert.rejects(world.client.version(), AgentUnreachable);
  {
    await using _server = await serveApi(options);
    using client = new ApiClient(socket);
    assert.equal((await client.version()).version, "2");
  }
  Deno.writeTextFileSync(socket, "mine");
  await assert.rejects(
    serveApi(options),
    (error) => error instanceof SocketError && /is no socket/.test(error.message),
  );
  assert.equal(Deno.readTextFileSync(socket), "mine");
});

Deno.test("no agent is told as such", async () => {
  await using world = new World();
  await assert.rejects(
    world.client.list(),
    (error) => error instanceof AgentUnreachable && error.message.includes(world.socket),
  );
});

Deno.test("the OpenAPI document has every call and no loose end", async () => {
  await using world = await new World().serve();
  const { body } = await world.raw("GET", "/openapi.json");
  const document = body as { openapi: string; paths: Record<string, Record<string, { operationId: string }>> };
  assert.equal(document.openapi, "3.1.0");
  const ids = Object.values(document.paths).flatMap((methods) =>
    Object.values(methods).map((call) => call.operationId)
  );
  assert.equal(new Set(ids).size, 11);
  for (const [path, methods] of Object.entries(document.paths)) {
    for (const call of Object.values(methods)) {
      assert.equal("parameters" in call, path.includes("{name}"), path);
    }
  }
  assert.ok(!JSON.stringify(document).includes("$defs"));
});

Deno.test("metrics tell of forks, tickets, clones and their memory", async () => {
  await using world = await new World().serve();
  const { client, engine } = world;
  await client.requestTicket({ domain: 7, clones: 3 });
  await client.clone("t1");
  const list = engine.list.bind(engine);
  engine.list = () =>
    list().map((ticket) => ({
      ...ticket,
      clones: ticket.clones.map((clone) => ({ ...clone, memory: { faults: 5 } })),
    }));
  const text = await client.metrics();
  for (
    const line of [
      'snowflock_info{version="1.2.3"} 1',
      "snowflock_forks_total 1",
      'snowflock_fork_stage_milliseconds_sum{stage="pause"} 10',
      'snowflock_fork_stage_milliseconds_bucket{le="25",stage="clone"} 1',
      'snowflock_tickets{state="cloned"} 1',
      'snowflock_clones{state="running"} 3',
      'snowflock_clones{state="lost"} 0',
      'snowflock_clone_memory{counter="faults"} 15',
      'snowflock_api_requests_total{operation="clone",status="200"} 1',
    ]
  ) assert.ok(text.split("\n").includes(line), line);
});

Deno.test("the log can be read and followed", async () => {
  await using world = await new World().serve();
  const { client, logs } = world;
  for (let n = 0; n < 5; n++) logs.push(`{"n":${n}}`);
  assert.equal(await new Response(await client.logs({ tail: 2, follow: false })).text(), '{"n":3}\n{"n":4}\n');
  const abort = new AbortController();
  const stream = await client.logs({ tail: 1, follow: true }, { signal: abort.signal });
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  assert.equal((await reader.read()).value, '{"n":4}\n');
  logs.push('{"n":5}');
  assert.equal((await reader.read()).value, '{"n":5}\n');
  await reader.cancel();
  abort.abort();
  while (logs.followers > 0) await new Promise((go) => setTimeout(go, 1));
});
