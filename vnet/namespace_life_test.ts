/** A network from its making to its end, on hosts that are network namespaces. Needs root. */
import { deepStrictEqual, ok, rejects, strictEqual } from "node:assert/strict";
import { command, type CommandOptions, type CommandResult, type CommandRunner } from "./commands.ts";
import { FamilyNetwork, FamilyNetworkError } from "./mod.ts";
import { NativeCommands } from "./native_commands.ts";
import { type TestHost } from "./testing/namespace_fleet.ts";
import { at, BLUE, RED, withFleet } from "./testing/with_fleet.ts";

const runnerOf = (hostNamespace?: string) => new NativeCommands(hostNamespace === undefined ? {} : { hostNamespace });
const root = Deno.uid() === 0;

Deno.test({ name: "asked twice is as asked once; removed is gone; leftovers are swept", ignore: !root }, async () => {
  await withFleet(runnerOf, async (fleet) => {
    const { a } = fleet;
    await command(a.runner, "forward", ["sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"]);
    const members = [
      await fleet.makeMember(a, RED, 0),
      await fleet.makeMember(a, RED, 1),
      await fleet.makeMember(a, BLUE, 0),
    ];
    const before = await fleet.inventory(a);
    const open = fleet.options(a, { egress: { allow: [{ to: "10.99.0.9/32" }], dns: "10.99.0.9" }, rateMbps: 100 });
    const build = async () => {
      await Promise.all([RED, BLUE].map((family) => a.network.ensure(family, open)));
      for (const { family, cloneId, vif } of members) await a.network.addMember(family, cloneId, vif);
    };
    await build();
    const once = await fleet.inventory(a);
    await build();
    strictEqual(await fleet.inventory(a), once);

    const [first, second, twin] = [at(members, 0), at(members, 1), at(members, 2)];
    const conflict = (e: unknown) => e instanceof FamilyNetworkError && e.code === "conflict";
    await rejects(a.network.addMember(RED, 5, first.vif), conflict, "a vif of another clone");
    await rejects(a.network.addMember(RED, 0, "vif99.0"), conflict, "a clone with another vif");
    await rejects(a.network.ensure({ id: BLUE.id, vni: RED.vni }, open), conflict, "an id of another family");
    await rejects(
      a.network.addMember({ ...RED, vni: RED.vni + 1 }, 0, "vif1"),
      (e) => e instanceof FamilyNetworkError && e.code === "absent",
    );
    await rejects(a.network.addMember(RED, 6, "vif99.0"), /Cannot find device/);
    strictEqual(await fleet.inventory(a), once, "a refusal changes nothing");

    // Another peer and another port; the members stay.
    await a.network.ensure(RED, { ...open, peers: ["10.99.0.77"], underlay: { ...open.underlay, port: 4790 } });
    strictEqual((await a.network.show(RED)).members.length, 2);
    await a.network.ensure(RED, open);
    strictEqual(await fleet.inventory(a), once);

    strictEqual(await a.network.removeMember(RED, 1), false);
    strictEqual(await a.network.removeMember(RED, 1), false, "once more");
    // A domain that ends takes its vif along.
    await command(fleet.outer, "end a domain", ["ip", "link", "del", first.vif], {
      namespace: `${a.prefix}${RED.vni.toString(16)}`,
    });
    strictEqual(await a.network.removeMember(RED, 0), true, "with the last member the network goes");
    strictEqual(await a.network.removeMember(RED, 0), true);
    strictEqual(await a.network.removeMember(BLUE, 0), true);
    const gone = before.split("\n").filter((line) => !line.includes(first.vif)).join("\n");
    strictEqual(
      await fleet.inventory(a),
      gone,
    );

    // An agent dies; the next one knows of blue only.
    await a.network.ensure(BLUE, open);
    await a.network.addMember(BLUE, 0, twin.vif);
    const kept = await fleet.inventory(a);
    await a.network.ensure(RED, open);
    await a.network.addMember(RED, 1, second.vif);
    const next = new FamilyNetwork({
      runner: a.runner,
      ranges: fleet.ranges,
      prefix: a.prefix,
      stateDirectory: a.stateDirectory,
    });
    strictEqual((await next.show(RED)).members.length, 1, "it finds what is there");
    deepStrictEqual(await next.sweep([BLUE]), [`${a.prefix}${RED.vni.toString(16)}`]);
    strictEqual(await fleet.inventory(a), kept);
    deepStrictEqual(await next.sweep([BLUE]), []);
    await next.remove(BLUE);
    await next.remove(BLUE);
    strictEqual(
      await fleet.inventory(a),
      gone,
    );
  });
});

/** Fails at the command of this number (from 0) and lets all others through. */
class FaultyCommands implements CommandRunner {
  seen = 0;
  constructor(readonly inner: CommandRunner, readonly failAt: number) {}

  run(argv: readonly string[], options?: CommandOptions): Promise<CommandResult> {
    if (this.seen++ !== this.failAt) return this.inner.run(argv, options);
    return Promise.reject(new Error(`fault ${this.failAt}: ${argv.join(" ")}`));
  }
}

Deno.test({ name: "a fault at any step leaves what was there before", ignore: !root }, async () => {
  await withFleet(runnerOf, async (fleet) => {
    /** Tries with a fault at each command in turn, until a try meets none; gives the number of commands. */
    const eachFault = async (host: TestHost, task: (network: FamilyNetwork) => Promise<unknown>) => {
      const expected = await fleet.inventory(host);
      for (let failAt = 0; failAt < 80; failAt++) {
        const runner = new FaultyCommands(host.runner, failAt);
        const network = new FamilyNetwork({ ...host, runner, ranges: fleet.ranges });
        let failed: unknown;
        try {
          await task(network);
        } catch (error) {
          failed = error;
        }
        if (runner.seen <= failAt) {
          strictEqual(failed, undefined);
          return failAt;
        }
        ok(failed !== undefined, `the fault at ${failAt} was told`);
        strictEqual(await fleet.inventory(host), expected, `after ${failed}`);
      }
      throw new Error("over 80 commands");
    };
    const open = (host: TestHost) => fleet.options(host, { egress: { allow: [{ to: "10.99.0.9/32" }] } });
    for (const { runner } of [fleet.a, fleet.b]) {
      await command(runner, "forward", ["sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"]);
    }
    const { vif } = await fleet.makeMember(fleet.b, RED, 0);
    await fleet.b.network.ensure(RED, open(fleet.b));
    const [ensuring, adding] = await Promise.all([
      eachFault(fleet.a, (network) => network.ensure(RED, open(fleet.a))),
      eachFault(fleet.b, (network) => network.addMember(RED, 0, vif)),
    ]);
    ok(ensuring > 15 && adding > 15, `${ensuring} and ${adding} commands`);
    console.log(`    commands: ${ensuring} to make a network, ${adding} to add a member`);
  });
});
