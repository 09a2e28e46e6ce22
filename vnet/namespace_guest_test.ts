/** What a guest sees, on hosts that are network namespaces: resets, the way out, DHCP, its rate. Needs root. */
import { deepStrictEqual, ok, strictEqual } from "node:assert/strict";
import { command } from "./commands.ts";
import { NativeCommands } from "./native_commands.ts";
import { dhcp, ip4Bytes, readDhcp, tcp, text, udp } from "./testing/frames.ts";
import { at, pause, RED, withFleet } from "./testing/with_fleet.ts";

const runnerOf = (hostNamespace?: string) => new NativeCommands(hostNamespace === undefined ? {} : { hostNamespace });
const root = Deno.uid() === 0;

Deno.test(
  { name: "inherited connections end at once; egress is closed until it is opened", ignore: !root },
  async () => {
    await withFleet(runnerOf, async (fleet, tool) => {
      const { a } = fleet;
      await command(a.runner, "forward", ["sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"]);
      await a.network.ensure(RED, fleet.options(a));
      const parent = await fleet.addMember(a, RED, 0);
      const other = await fleet.addMember(a, RED, 1);

      const closed = await fleet.connect(parent.namespace, fleet.world.address, 7777);
      ok(/refused/.test(closed.said) && closed.tookMs < 1000, `closed at once: ${closed.said}`);

      const echo = new Deno.Command("nsenter", {
        args: [
          `--net=/run/netns/${fleet.world.namespace}`,
          "--",
          Deno.execPath(),
          "eval",
          'for await (const c of Deno.listen({hostname: "0.0.0.0", port: 7777})) c.readable.pipeTo(c.writable).catch(() => {});',
        ],
        stdin: "null",
        stdout: "null",
        stderr: "null",
      }).spawn();
      try {
        await a.network.ensure(
          RED,
          fleet.options(a, { egress: { allow: [{ to: "10.99.0.0/24", protocol: "tcp", ports: [7777, 7777] }] } }),
        );
        let reached = await fleet.connect(parent.namespace, fleet.world.address, 7777);
        for (let i = 0; i < 30 && !/connected/.test(reached.said); i++) {
          await pause(100);
          reached = await fleet.connect(parent.namespace, fleet.world.address, 7777);
        }
        ok(/connected/.test(reached.said), reached.said);
        for (const [address, port] of [[fleet.world.address, 7778], [a.address, 7777], ["100.127.0.0", 22]] as const) {
          const { said, tookMs } = await fleet.connect(parent.namespace, address, port);
          ok(!/connected/.test(said), `${address} ${port}: ${said}`);
          if (port === 7778) ok(tookMs < 1000, "refused at once");
        }

        // The parent's connection to the outside, held while a clone comes and the rules are replaced.
        await using held = await TalkingConnection.open(parent.namespace, fleet.world.address, 7777);
        strictEqual(await held.say("before"), "before");
        const clone = await fleet.addMember(a, RED, 2, false);
        strictEqual(await held.say("after"), "after");

        // The clone as it wakes: its own MAC, its parent's addresses, and sockets that use them.
        const namespace = clone.namespace;
        const { gateway4 } = a.network.plan.family(RED);
        for (
          const argv of [
            ["ip", "addr", "add", `${parent.ip4}/16`, "dev", "eth0"],
            ["ip", "addr", "add", `${parent.ip6}/64`, "dev", "eth0", "nodad"],
            ["ip", "route", "add", "default", "via", gateway4],
          ]
        ) await command(fleet.outer, "play a clone", argv, { namespace });
        const wire = await tool.raw(other.namespace, "eth0");
        const toMember = await fleet.connect(namespace, other.ip4, 9);
        ok(
          /refused/.test(toMember.said) && toMember.tookMs < 1000,
          `reset at once: ${toMember.said} ${toMember.tookMs}`,
        );
        const toWorld = await fleet.connect(namespace, fleet.world.address, 7777);
        ok(/refused/.test(toWorld.said) && toWorld.tookMs < 1000, `reset at once: ${toWorld.said} ${toWorld.tookMs}`);
        const toMember6 = await fleet.connect(namespace, other.ip6, 9);
        ok(
          /refused/.test(toMember6.said) && toMember6.tookMs < 1000,
          `reset at once: ${toMember6.said} ${toMember6.tookMs}`,
        );
        const frames = await wire.drain();
        ok(
          !frames.some((frame) => frame[12] === 8 && frame[13] === 0 || frame[20] === 6),
          "and not one segment left the clone",
        );

        // Data on an open connection is answered by a reset that the connection takes: its numbers are the ones expected.
        const cloneWire = await tool.raw(namespace, "eth0");
        await cloneWire.send(
          tcp(
            { from: clone.mac, to: other.mac },
            { from: parent.ip4, to: other.ip4 },
            [1111, 2222],
            text("data that fills an Ethernet frame"),
          ),
          tcp(
            { from: clone.mac, to: other.mac },
            { from: parent.ip6, to: other.ip6 },
            [1111, 2222],
            text("data that fills an Ethernet frame"),
          ),
        );
        const isReset4 = (frame: Uint8Array) => frame[23] === 6 && ((frame[47] ?? 0) & 4) === 4;
        const isReset6 = (frame: Uint8Array) => frame[20] === 6 && ((frame[67] ?? 0) & 4) === 4;
        const answers = await cloneWire.drainUntil(isReset6);
        const reset = answers.find(isReset4);
        ok(reset !== undefined && answers.some(isReset6));
        deepStrictEqual([...reset.subarray(26, 34)], [...ip4Bytes(other.ip4), ...ip4Bytes(parent.ip4)]);
        strictEqual(
          new DataView(reset.buffer).getUint32(38),
          2000,
          "the sequence number that the other end had acknowledged",
        );
        strictEqual(await held.say("still there"), "still there");
      } finally {
        echo.kill();
        await echo.status;
      }
      await a.network.ensure(RED, fleet.options(a));
      ok(/refused/.test((await fleet.connect(parent.namespace, fleet.world.address, 7777)).said), "closed again");
      ok(!(await fleet.inventory(a)).includes(`${a.prefix}u`), "and the way out is gone");
    });
  },
);

Deno.test({
  name: "guests without the client: DHCP by MAC alone, IPv6 by router advertisement; the rate is bounded",
  ignore: !root,
}, async () => {
  await withFleet(runnerOf, async (fleet, tool) => {
    const { a } = fleet;
    await a.network.ensure(RED, fleet.options(a, { rateMbps: 1 }));
    const members = [await fleet.addMember(a, RED, 0, false), await fleet.addMember(a, RED, 7, false)];
    const { gateway4 } = a.network.plan.family(RED);
    for (const member of members) {
      const wire = await tool.raw(member.namespace, "eth0");
      // Parent and clone have one client id.
      const clientId = [255, 1, 2, 3, 4];
      const isAnswer = (kind: number) => (frame: Uint8Array) => readDhcp(frame)?.kind === kind;
      await wire.send(dhcp(member.mac, 1, clientId));
      const offer = (await wire.drainUntil(isAnswer(2))).map(readDhcp).find((answer) => answer?.kind === 2);
      strictEqual(offer?.address, member.ip4);
      await wire.send(dhcp(member.mac, 3, clientId, member.ip4, gateway4));
      const lease = (await wire.drainUntil(isAnswer(5))).map(readDhcp).find((answer) => answer?.kind === 5);
      strictEqual(lease?.address, member.ip4);
      deepStrictEqual(lease.options.get(1), [255, 255, 0, 0]);
      deepStrictEqual(lease.options.get(3), ip4Bytes(gateway4));
      deepStrictEqual(lease.options.get(26), [1380 >> 8, 1380 & 255]);
      deepStrictEqual(lease.options.get(12), text(`sf-11111111-${member.cloneId}`));
    }
    const [parent] = members;
    if (parent === undefined) throw new Error("no member");
    const argv = ["ip", "-6", "-oneline", "addr", "show", "dev", "eth0", "scope", "global"];
    let addresses = "";
    for (let i = 0; i < 50 && !addresses.includes(parent.ip6); i++) {
      addresses = await command(fleet.outer, "read", argv, { namespace: parent.namespace });
      await pause(100);
    }
    ok(addresses.includes(`${parent.ip6}/64`), `SLAAC: ${addresses}`);
    const routes = await command(fleet.outer, "read", ["ip", "-6", "route", "show", "default"], {
      namespace: parent.namespace,
    });
    strictEqual(routes, "", "no way out by IPv6");

    const [from, to] = [await tool.raw(parent.namespace, "eth0"), await tool.raw(at(members, 1).namespace, "eth0")];
    const frame = udp({ from: parent.mac, to: at(members, 1).mac }, { from: parent.ip4, to: at(members, 1).ip4 }, [
      1,
      2,
    ], Array<number>(1300).fill(7));
    await pause(1100); // the bucket is full again
    await to.drain();
    await from.send(...Array<Uint8Array>(500).fill(frame));
    await pause(50);
    const passed = (await to.drain()).filter((got) => got.length === frame.length).length;
    ok(
      passed >= 50 && passed <= 130,
      `${passed} of 500 frames of 1342 bytes passed a bound of 125 kB in the first second`,
    );
  });
});

/** One TCP connection, kept by a shell in a namespace; what is said comes back. */
class TalkingConnection implements AsyncDisposable {
  readonly #child: Deno.ChildProcess;
  readonly #writer: WritableStreamDefaultWriter<Uint8Array>;
  readonly #reader: ReadableStreamDefaultReader<string>;

  private constructor(namespace: string, address: string, port: number) {
    const script =
      `exec 3<>/dev/tcp/${address}/${port}; while read -r line; do echo "$line" >&3; read -r -t 3 back <&3; echo "$back"; done`;
    this.#child = new Deno.Command("nsenter", {
      args: [`--net=/run/netns/${namespace}`, "--", "bash", "-c", script],
      stdin: "piped",
      stdout: "piped",
    }).spawn();
    this.#writer = this.#child.stdin.getWriter();
    this.#reader = this.#child.stdout.pipeThrough(new TextDecoderStream()).getReader();
  }

  static open(namespace: string, address: string, port: number): Promise<TalkingConnection> {
    return Promise.resolve(new TalkingConnection(namespace, address, port));
  }

  async say(word: string): Promise<string> {
    await this.#writer.write(new TextEncoder().encode(`${word}\n`));
    return ((await this.#reader.read()).value ?? "").trim();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#writer.close();
    await this.#child.status;
    await this.#reader.cancel();
  }
}
