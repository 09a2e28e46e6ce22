import assert from "node:assert/strict";
import { FakeEngine } from "../api/engine_fake.ts";
import { LogBuffer } from "../api/log_buffer.ts";
import { serveApi } from "../api/server.ts";
import type { Config } from "../config/mod.ts";
import type { Finding } from "../doctor/mod.ts";
import { buildProgram, type CliDependencies, type CliIo, runProgram } from "./mod.ts";

class World implements AsyncDisposable {
  readonly engine = new FakeEngine();
  readonly logs = new LogBuffer();
  readonly directory = Deno.makeTempDirSync({ prefix: "snowflock-cli-" });
  readonly socket = `${this.directory}/agent.sock`;
  readonly files = new Map<string, string>();
  readonly configs: Config[] = [];
  findings: Finding[] = [{ check: "root", status: "ok", detail: "user 0" }];
  interrupts = new Set<() => void>();
  #server: AsyncDisposable | undefined;

  async serve(): Promise<this> {
    const { engine, logs, socket } = this;
    this.#server = await serveApi({ engine, logs, socket, version: "1.0", host: "h1" });
    return this;
  }

  /** Runs one command line. */
  async run(...args: string[]): Promise<{ status: number; out: string; err: string }> {
    let out = "";
    let err = "";
    const io: CliIo = {
      out: (text) => out += text,
      err: (text) => err += text,
      readText: (path) => {
        const text = this.files.get(path);
        return text === undefined ? Promise.reject(new Deno.errors.NotFound(path)) : Promise.resolve(text);
      },
      env: (name) => name === "SNOWFLOCK_SOCKET" ? this.socket : undefined,
      onInterrupt: (listener) => {
        this.interrupts.add(listener);
        return { [Symbol.dispose]: () => void this.interrupts.delete(listener) };
      },
    };
    const dependencies: CliDependencies = {
      version: "1.1",
      runAgent: (config, signal) => {
        this.configs.push(config);
        return new Promise((resolve) => {
          signal.addEventListener("abort", () => resolve(), { once: true });
        });
      },
      doctor: () => Promise.resolve(this.findings),
      io,
    };
    const status = await runProgram(buildProgram(dependencies), dependencies, args);
    assert.equal(this.interrupts.size, 0);
    return { status, out, err };
  }

  async interruptSoon(ready: () => boolean): Promise<void> {
    while (!ready()) await new Promise((go) => setTimeout(go, 1));
    for (const listener of this.interrupts) listener();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#server?.[Symbol.asyncDispose]();
    Deno.removeSync(this.directory, { recursive: true });
  }
}

Deno.test("clone, look, join, kill", async () => {
  await using world = await new World().serve();
  const { engine } = world;
  assert.deepEqual(await world.run("list"), { status: 0, out: "No tickets.\n", err: "" });
  const cloned = await world.run("clone", "web", "-n", "2");
  assert.equal(cloned.status, 0);
  assert.match(
    cloned.out,
    /^ticket t1\nparent paused 10 ms \(suspend 4\.0 ms, .*\nclones running after 20 ms; descriptor 4 KiB\n/,
  );
  assert.match(cloned.out, /\n1 {3}web-t1-1 {2}h1 {4}20 {5}running {2}9\.0 ms/);
  const list = await world.run("list");
  assert.equal(list.out.split("\n")[1], "t1      web (7)  cloned  2       2        0");
  const tree = "web (7)\n├─ web-t1-1 (20)  clone 1 of t1\n└─ web-t1-2 (21)  clone 2 of t1\ndb (8)\n";
  assert.equal((await world.run("tree")).out, tree);
  assert.match((await world.run("show", "20")).out, /^clone {2,}1 of ticket t1\nname {2,}web-t1-1\n/);
  assert.match((await world.run("show", "t1")).out, /^ticket t1: 2 clones of web \(7\), cloned\n/);
  await engine.cloneExited(20, 7, "a\x1b[31mred\n");
  engine.lose(21, "it crashed");
  assert.deepEqual(await world.run("join", "t1"), {
    status: 0,
    out: "1 7 a%1b[31mred%0a\n2 lost it crashed\n",
    err: "",
  });
  assert.deepEqual(await world.run("kill", "t1"), { status: 0, out: "", err: "" });
  assert.equal((await world.run("checkpoint", "8")).out, "ticket t2: 0 clones of db (8), ready\n");
});

Deno.test("--json gives what the API gives, before or behind the command", async () => {
  await using world = await new World().serve();
  const report = JSON.parse((await world.run("clone", "7", "--json")).out);
  assert.equal(report.clones.length, 1);
  assert.deepEqual(JSON.parse((await world.run("--json", "list")).out), world.engine.list());
  assert.deepEqual(JSON.parse((await world.run("tree", "--json")).out), world.engine.domains());
  assert.deepEqual(JSON.parse((await world.run("kill", "t1", "--json")).out), { killed: ["t1"] });
  const joined = JSON.parse((await world.run("join", "t1", "--json")).out);
  assert.equal(joined[0].state, "killed");
  assert.deepEqual(JSON.parse((await world.run("version", "--json")).out), {
    version: "1.1",
    agent: { version: "1.0", host: "h1" },
  });
});

Deno.test("errors are one line and a status", async () => {
  await using world = await new World().serve();
  assert.deepEqual(await world.run("join", "t9"), { status: 1, out: "", err: "snowflock: There is no ticket t9\n" });
  assert.deepEqual(await world.run("clone", "web", "-n", "0", "--json"), {
    status: 1,
    out: "",
    err: '{"error":{"code":"bad-request","message":"--clones must be a whole number of 1 to 1000, not 0"}}\n',
  });
  for (const count of ["-1", "1001", "99999999999", "four", "1.5"]) {
    assert.match(
      (await world.run("clone", "web", `--clones=${count}`)).err,
      /^snowflock: --clones must be .*\n$/,
      count,
    );
  }
  assert.match((await world.run("clone", "nobody")).err, /^snowflock: There is no domain nobody\n$/);
  const kill = await world.run("kill", "t8", "t9");
  assert.deepEqual([kill.status, kill.err], [1, "snowflock: There is no ticket t8; There is no ticket t9\n"]);
  for (const args of [["fly"], ["clone"], ["list", "--colour"], []]) {
    const { status, err } = await world.run(...args);
    assert.equal(status, 2, args.join(" "));
    assert.ok(err.length > 0);
  }
  const elsewhere = await world.run("list", "--socket", `${world.directory}/none`);
  assert.equal(elsewhere.status, 1);
  assert.match(elsewhere.err, /^snowflock: Cannot reach an agent at .*none.*\n$/);
  assert.equal(
    (await world.run("version", "--socket", `${world.directory}/none`)).out,
    "snowflock 1.1\nno agent is running\n",
  );
});

Deno.test("help, of the program and of each command, with the settings at the agent's", async () => {
  await using world = new World();
  const { status, out } = await world.run("--help");
  assert.equal(status, 0);
  for (
    const name of ["agent", "doctor", "clone", "join", "kill", "list", "show", "tree", "checkpoint", "logs", "version"]
  ) {
    assert.match(out, new RegExp(`\n  ${name} `));
    const help = await world.run(name, "--help");
    assert.equal(help.status, 0);
    assert.match(help.out, /--json/);
    assert.match(help.out, /--socket/);
  }
  assert.match((await world.run("agent", "--help")).out, /limits\.clonesPerTicket/);
  assert.deepEqual(await world.run("--version"), { status: 0, out: "1.1\n", err: "" });
});

Deno.test("a fork that fails leaves no ticket", async () => {
  await using world = await new World().serve();
  const { engine } = world;
  const clone = engine.clone.bind(engine);
  engine.clone = async (ticket) => {
    await clone(ticket);
    throw new Error("the parent would not stop");
  };
  const { status, err } = await world.run("clone", "web");
  assert.equal(status, 1);
  assert.equal(err, "snowflock: The agent failed; its log says why\n");
  assert.deepEqual(engine.list().map((ticket) => ticket.state), ["ended"]);
});

Deno.test("Ctrl-C ends a fork with its ticket, a join with nothing", async () => {
  await using world = await new World().serve();
  const { engine } = world;
  const gate = Promise.withResolvers<void>();
  engine.gate = gate.promise;
  const [interrupted] = await Promise.all([
    world.run("clone", "web"),
    world.interruptSoon(() => engine.calls.includes("clone t1")),
  ]);
  gate.resolve();
  assert.equal(interrupted.status, 130);
  assert.ok(engine.calls.includes("kill t1"));

  await world.run("clone", "web");
  const [joined] = await Promise.all([
    world.run("join", "t2"),
    world.interruptSoon(() => engine.calls.includes("join t2")),
  ]);
  assert.equal(joined.status, 130);
  assert.equal(engine.list()[0]?.state, "cloned");
  assert.deepEqual((await world.run("join", "t2", "--timeout", "0")).err, "snowflock: Clones of t2 run on\n");
  await world.run("kill", "t2");
});

Deno.test("fewer clones than asked for are told", async () => {
  await using world = await new World().serve();
  world.engine.capacity = 2;
  assert.equal((await world.run("clone", "web", "-n", "5")).err, "snowflock: only 2 of 5 clones were granted\n");
});

Deno.test("logs, and following them until Ctrl-C", async () => {
  await using world = await new World().serve();
  for (const n of [1, 2, 3]) world.logs.push(`{"n":${n}}`);
  assert.equal((await world.run("logs", "-n", "2")).out, '{"n":2}\n{"n":3}\n');
  const [followed] = await Promise.all([
    world.run("logs", "-n", "1", "-f"),
    world.interruptSoon(() => world.logs.followers > 0),
  ]);
  assert.equal(followed.status, 0);
  while (world.logs.followers > 0) await new Promise((go) => setTimeout(go, 1));
});

Deno.test("the agent runs with its settings until it is interrupted", async () => {
  await using world = new World();
  world.files.set("/c.yaml", "host: h7\nsocket: /elsewhere");
  const agent = async (...args: string[]) => {
    const count = world.configs.length;
    const [result] = await Promise.all([
      world.run("agent", ...args),
      world.interruptSoon(() => world.configs.length > count),
    ]);
    assert.equal(result.status, 0);
    return world.configs.at(-1);
  };
  assert.equal((await agent())?.host, undefined);
  const config = await agent("-c", "/c.yaml", "--socket", "/mine");
  assert.deepEqual([config?.host, config?.socket], ["h7", "/mine"]);
  const missing = await world.run("agent", "-c", "/none.yaml");
  assert.deepEqual([missing.status, missing.err], [1, "snowflock: Cannot use /none.yaml: there is no such file\n"]);
  world.files.set("/bad.yaml", "hots: h7\nlimits: 3");
  assert.match(
    (await world.run("agent", "-c", "/bad.yaml")).err,
    /^snowflock: Cannot use \/bad\.yaml: .*hots: there is no such setting\n$/,
  );
  assert.equal(JSON.parse((await world.run("agent", "-c", "/c.yaml", "--check")).out).host, "h7");
});

Deno.test("doctor's status is its verdict", async () => {
  await using world = new World();
  assert.deepEqual(await world.run("doctor"), { status: 0, out: "ok    root  user 0\n", err: "" });
  world.findings = [{ check: "HAP", status: "fail", detail: "none", remedy: "buy one" }];
  const { status, out } = await world.run("doctor", "--json");
  assert.equal(status, 1);
  assert.deepEqual(JSON.parse(out), { healthy: false, findings: world.findings });
});
