/**
 * `sf` under the shells that this machine has, against the real guest service over a fake xenstore and engine. The wake-up hooks run with
 * stand-ins for every command that would change a machine, and a network device that exists nowhere.
 */
import assert from "node:assert/strict";
import { FakeEngine } from "../api/engine_fake.ts";
import { identityNodes } from "./nodes.ts";
import { GuestService } from "./service.ts";
import { FakeStore } from "./store_fake.ts";
import { FakeXenbus } from "./xenbus_fake.ts";

const SF = new URL("sf", import.meta.url).pathname;
const HOOKS = new URL("clone.d", import.meta.url).pathname;

/** Where a command is, or undefined. */
function which(command: string): string | undefined {
  return (Deno.env.get("PATH") ?? "").split(":").map((directory) => `${directory}/${command}`).find((path) => {
    try {
      return Deno.statSync(path).isFile;
    } catch {
      return false;
    }
  });
}

const SHELLS = [["busybox", "sh"], ["dash"], ["bash", "--posix"]].flatMap(([command = "", ...rest]) => {
  const path = which(command);
  return path === undefined ? [] : [{ name: [command, ...rest].join(" "), shell: [path, ...rest] }];
});

interface Result {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

class Guest implements AsyncDisposable {
  readonly store = new FakeStore();
  readonly engine = new FakeEngine();
  readonly root = Deno.makeTempDirSync({ prefix: "sf-test-" });
  #runs = 0;
  #service: GuestService | undefined;
  bus: FakeXenbus | undefined;

  constructor(readonly shell: readonly string[]) {
    this.store.introduce(7);
    for (const directory of ["etc/snowflock/clone.d", "run", "bin", "dev"]) {
      Deno.mkdirSync(`${this.root}/${directory}`, { recursive: true });
    }
    for (const { name } of Deno.readDirSync(HOOKS)) {
      const copy = `${this.root}/etc/snowflock/clone.d/${name}`;
      Deno.copyFileSync(`${HOOKS}/${name}`, copy);
      Deno.chmodSync(copy, 0o755);
    }
    for (const name of ["ip", "hostname"]) {
      const script = `#!/bin/sh\nprintf '%s\\n' "${name} $*" >>"${this.root}/commands"\n`;
      Deno.writeTextFileSync(`${this.root}/bin/fake-${name}`, script, { mode: 0o755 });
    }
    Deno.writeTextFileSync(`${this.root}/etc/hostname`, "parent\n");
    Deno.writeTextFileSync(`${this.root}/etc/machine-id`, "0\n");
    Deno.writeTextFileSync(`${this.root}/dev/urandom`, "");
  }

  async serve(): Promise<this> {
    const limits = { requestsPerSecond: 50, burst: 50 };
    this.#service = await GuestService.start({ store: this.store, engine: this.engine, limits });
    return this;
  }

  get env(): Record<string, string> {
    return {
      PATH: Deno.env.get("PATH") ?? "/bin",
      SF_ROOT: this.root,
      SF_IP: `${this.root}/bin/fake-ip`,
      SF_HOSTNAME: `${this.root}/bin/fake-hostname`,
      SF_DEVICE: "sfnone0",
      SF_URANDOM: `${this.root}/dev/urandom`,
      SF_PERL: "/nonexistent/perl",
      SF_PYTHON: "/nonexistent/python",
      SF_KALLSYMS: `${this.root}/kallsyms`,
    };
  }

  async run(args: string[], options: { domid?: number; env?: Record<string, string> } = {}): Promise<Result> {
    const directory = `${this.root}/bus${this.#runs++}`;
    Deno.mkdirSync(directory);
    await using bus = await FakeXenbus.open(this.store, options.domid ?? 7, directory);
    this.bus = bus;
    const SF_XENBUS = FakeXenbus.paths(directory).join(",");
    return await this.spawn(args, { SF_XENBUS, ...options.env });
  }

  async spawn(args: string[], env: Record<string, string>): Promise<Result> {
    const [command = "sh", ...rest] = this.shell;
    const { code, stdout, stderr } = await new Deno.Command(command, {
      args: [...rest, SF, ...args],
      clearEnv: true,
      env: { ...this.env, ...env },
      stdin: "null",
    }).output();
    return { code, stdout: new TextDecoder().decode(stdout), stderr: new TextDecoder().decode(stderr) };
  }

  text(path: string): string {
    return Deno.readTextFileSync(`${this.root}/${path}`);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#service?.[Symbol.asyncDispose]();
    Deno.removeSync(this.root, { recursive: true });
  }
}

Deno.test("this machine has a shell to test sf with", () => assert.ok(SHELLS.length > 0));

for (const { name, shell } of SHELLS) {
  Deno.test(`${name}: ticket, clone as the parent, join, kill`, async () => {
    await using guest = await new Guest(shell).serve();
    assert.deepEqual(await guest.run(["request-ticket", "2"]), { code: 0, stdout: "t1 2\n", stderr: "" });
    assert.deepEqual(await guest.run(["clone", "t1"]), { code: 0, stdout: "0\n", stderr: "" });
    assert.deepEqual(await guest.run(["id"]), { code: 0, stdout: "0\n", stderr: "" });
    await guest.engine.cloneExited(20, 200, "x ü\n%d\\n 5%");
    await guest.engine.cloneExited(21, 0, "");
    const lines = "1 200 x ü%0a%25d\\n 5%25\n2 0\n";
    assert.deepEqual(await guest.run(["join", "t1"]), { code: 0, stdout: lines, stderr: "" });
    assert.deepEqual(await guest.run(["kill", "t1"]), { code: 0, stdout: "", stderr: "" });
    // The parent never runs the hooks.
    assert.throws(() => guest.text("commands"), Deno.errors.NotFound);
    assert.equal(guest.text("etc/hostname"), "parent\n");
  });

  Deno.test(`${name}: clone as a clone, with all hooks, once`, async () => {
    await using guest = await new Guest(shell).serve();
    const { engine, store } = guest;
    const clone = engine.clone.bind(engine);
    engine.clone = async (ticket, options) => {
      const report = await clone(ticket, options);
      const identity = {
        id: 1,
        ticket,
        family: "web",
        name: "web.t1.1",
        uuid: "0a1b2c3d-0000-4000-8000-00000000002a",
        address: "10.77.0.3/16",
        gateway: "10.77.0.1",
        // A value of 10 bytes has a newline for its length.
        mac: "0123456789",
        seed: new Uint8Array(64).fill(0x5a),
      };
      const nodes = { ...identityNodes(identity), ...engine.nodes.get(report.clones[0]?.name ?? "") };
      for (const [path, value] of Object.entries(nodes)) store.set(`/local/domain/20/${path}`, value);
      store.introduce(20);
      await guest.bus?.moveTo(20);
      return report;
    };
    const before = performance.now();
    const result = await guest.run(["create-clones", "1"]);
    const elapsedMs = performance.now() - before;
    assert.equal(result.stdout, "1\n");
    assert.equal(result.code, 0);
    assert.match(result.stderr, /^40-random: cannot ask the kernel to reseed[^\n]*\n$/);
    assert.equal(store.text("/local/domain/20/data/snowflock/awake"), "1");
    assert.deepEqual(engine.awake, [20]);
    assert.deepEqual(guest.text("commands").split("\n").slice(0, -1), [
      "ip addr flush dev sfnone0",
      "ip addr add 10.77.0.3/16 dev sfnone0",
      "ip link set sfnone0 up",
      "ip route replace default via 10.77.0.1 dev sfnone0",
      "ip neigh flush dev sfnone0",
      "hostname web-t1-1",
    ]);
    assert.equal(guest.text("etc/hostname"), "web-t1-1\n");
    assert.equal(guest.text("etc/machine-id"), "0a1b2c3d000040008000" + "00000000002a\n");
    assert.equal(guest.text("dev/urandom"), "5a".repeat(64));
    // Woken by a watch, not by the second hand. (Generous: the machine may be busy.)
    assert.ok(elapsedMs < 5000, `${elapsedMs} ms`);

    assert.deepEqual(await guest.run(["id"], { domid: 20 }), { code: 0, stdout: "1\n", stderr: "" });
    assert.deepEqual(await guest.run(["exit", "3", "done 100%"], { domid: 20 }), { code: 0, stdout: "", stderr: "" });
    assert.deepEqual(await guest.run(["join", "t1"]), { code: 0, stdout: "1 3 done 100%25\n", stderr: "" });
    assert.equal(guest.text("commands").split("\n").length, 7);
  });

  Deno.test(`${name}: a clone that somebody else made wakes up once; a machine that is no clone never`, async () => {
    await using guest = new Guest(shell);
    assert.deepEqual(await guest.run(["wake"]), { code: 0, stdout: "", stderr: "" });
    assert.throws(() => guest.text("commands"), Deno.errors.NotFound);
    const identity = { id: 2, ticket: "t5", family: "f", name: "n", uuid: "u", seed: new Uint8Array(64) };
    for (const [path, value] of Object.entries(identityNodes(identity))) {
      guest.store.set(`/local/domain/7/${path}`, value);
    }
    for (let n = 0; n < 2; n++) assert.equal((await guest.run(["wake"])).code, 0);
    // Without an address the network is left alone; a UUID that is none gives no machine id.
    assert.equal(guest.text("commands"), "hostname n\n");
    assert.equal(guest.text("etc/machine-id"), "0\n");
    // Where nothing can be remembered, the hooks run rather than not.
    Deno.removeSync(`${guest.root}/run`, { recursive: true });
    Deno.writeTextFileSync(`${guest.root}/run`, "");
    assert.match((await guest.run(["wake"])).stderr, /may run twice/);
    assert.equal(guest.text("commands"), "hostname n\nhostname n\n");
  });

  Deno.test(`${name}: what the agent refuses`, async () => {
    await using guest = await new Guest(shell).serve();
    assert.deepEqual(await guest.run(["clone", "t9"]), {
      code: 1,
      stdout: "",
      stderr: "sf: There is no ticket t9 (no-such-ticket)\n",
    });
    assert.deepEqual(await guest.run(["exit"]), {
      code: 1,
      stdout: "",
      stderr: "sf: Domain 7 is no clone (not-yours)\n",
    });
    guest.engine.capacity = 0;
    assert.equal(
      (await guest.run(["request-ticket", "1000"])).stderr,
      "sf: No host has memory for a shell (no-memory)\n",
    );
  });

  Deno.test(`${name}: wrong use is refused before the store is touched`, async () => {
    await using guest = new Guest(shell);
    const wrong: [string[], RegExp][] = [
      [["fly"], /no command 'fly'/],
      [["request-ticket"], /wrong number of arguments/],
      [["request-ticket", "0"], /number of clones must be a number of 1 to 1000, not '0'/],
      [["request-ticket", "-1"], /not '-1'/],
      [["request-ticket", "1001"], /not '1001'/],
      [["create-clones", "99999999999999999999"], /must be a number/],
      [["request-ticket", "four"], /not 'four'/],
      [["clone", "a b"], /'a b' is no ticket/],
      [["clone", "x".repeat(65)], /is no ticket/],
      [["kill", ""], /'' is no ticket/],
      [["exit", "256"], /status must be a number of 0 to 255/],
      [["exit", "0", "ü".repeat(1025)], /at most 2048 bytes/],
      [["exit", "0", "a", "b"], /wrong number of arguments/],
    ];
    for (const [args, message] of wrong) {
      const result = await guest.spawn(args, { SF_XENBUS: "/nonexistent" });
      assert.equal(result.code, 2, args.join(" "));
      assert.match(result.stderr, message);
      assert.match(result.stderr, /^sf: .*\n$/);
    }
    assert.equal((await guest.spawn([], {})).code, 2);
    assert.match((await guest.spawn(["--help"], {})).stdout, /checkpoint-parent/);
    assert.equal((await guest.spawn(["id"], { SF_TIMEOUT: "soon" })).code, 2);
    const none = await guest.spawn(["id"], { SF_XENBUS: `${guest.root}/none`, PATH: "/nonexistent" });
    assert.equal(none.code, 3);
    assert.match(none.stderr, /is this a Xen guest/);
    assert.throws(() => Deno.statSync(`${guest.root}/none`), Deno.errors.NotFound);
  });

  Deno.test(`${name}: no agent, no answer, in time`, async () => {
    await using guest = new Guest(shell);
    // What an earlier request left is not taken for the answer.
    guest.store.set("/local/domain/7/data/snowflock/answer", "old ok 0\n");
    const result = await guest.run(["clone", "t1"], { env: { SF_TIMEOUT: "1" } });
    assert.deepEqual(result, { code: 4, stdout: "", stderr: "sf: no answer in 1 seconds: is the agent running?\n" });
  });

  Deno.test(`${name}: 2048 bytes of data and values of every length arrive`, async () => {
    await using guest = await new Guest(shell).serve();
    const data = Array.from({ length: 2048 }, (_, index) => String.fromCharCode(33 + index % 4)).join("");
    await guest.engine.requestTicket({ domain: 7, clones: 1 });
    guest.store.introduce(20);
    assert.equal((await guest.run(["exit", "0", data], { domid: 20 })).code, 0);
    assert.equal((guest.engine.show("20") as { data?: string } | undefined)?.data, data);
    assert.equal((await guest.run(["join", "t1"])).stdout, `1 0 ${data.replaceAll("%", "%25")}\n`);
    for (const length of [1, 9, 10, 11, 13, 127, 128, 129, 133, 136, 137, 255]) {
      guest.store.set("/local/domain/7/data/snowflock/id", "7".repeat(length));
      assert.equal((await guest.run(["id"])).stdout, `${"7".repeat(length)}\n`, `length ${length}`);
    }
  });

  Deno.test(`${name}: init reports the kernel's symbols`, async () => {
    await using guest = new Guest(shell);
    const lines = [
      "ffffffff81000000 T _text",
      "ffffffff8259f8c8 D vmemmap_base",
      "ffffffff82a00000 R __start_BTF",
      "ffffffffc0000000 d node_data\t[evil]",
      "0000000000000000 D phys_base",
      "ffffffff83000000 B node_data",
      "ffffffff83000008 B node_data_size",
    ];
    Deno.writeTextFileSync(`${guest.root}/kallsyms`, lines.join("\n") + "\n");
    assert.deepEqual(await guest.run(["init"]), { code: 0, stdout: "", stderr: "" });
    assert.equal(
      guest.store.text("/local/domain/7/data/snowflock/symbols"),
      "vmemmap_base=ffffffff8259f8c8\n__start_BTF=ffffffff82a00000\nnode_data=ffffffff83000000\n",
    );
    Deno.writeTextFileSync(`${guest.root}/kallsyms`, "0000000000000000 D vmemmap_base\n");
    assert.match((await guest.run(["init"])).stderr, /kptr_restrict/);
  });
}
