/** The real data path on two hosts that are network namespaces of the test's own. Needs root, `ip`, `nft` and `dnsmasq`. */
import { deepStrictEqual, ok, rejects, strictEqual } from "node:assert/strict";
import { command, type CommandOptions, type CommandResult, type CommandRunner } from "./commands.ts";
import { NativeCommands } from "./native_commands.ts";
import { DEFAULT_RANGES, type Family, FamilyNetwork, FamilyNetworkError } from "./mod.ts";
import {
  addressBytes,
  arp,
  BROADCAST,
  dhcp,
  ethernet,
  holds,
  icmp6,
  ip4Bytes,
  neighbourAdvert,
  readDhcp,
  tagged,
  tcp,
  text,
  udp,
  vxlan,
} from "./testing/frames.ts";
import { NamespaceFleet, type TestHost, type TestMember } from "./testing/namespace_fleet.ts";
import { PacketTool, type TestSocket } from "./testing/packet_tool.ts";

const RED: Family = { id: "11111111-1111-4111-8111-111111111111", vni: DEFAULT_RANGES.vni.first + 0x11 };
const BLUE: Family = { id: "22222222-2222-4222-8222-222222222222", vni: DEFAULT_RANGES.vni.first + 0x22 };
const runnerOf = (hostNamespace?: string) => new NativeCommands(hostNamespace === undefined ? {} : { hostNamespace });

const root = Deno.uid() === 0;
const pause = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

/** A fleet, the tool, and a folder for state, gone when the test is. */
async function withFleet(test: (fleet: NamespaceFleet, tool: PacketTool) => Promise<void>): Promise<void> {
  const directory = await Deno.makeTempDir({ prefix: "snowflock-vnet-" });
  await Deno.chmod(directory, 0o755);
  try {
    await using fleet = await NamespaceFleet.create(runnerOf, DEFAULT_RANGES, directory);
    await using tool = new PacketTool();
    await test(fleet, tool);
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
}

/** Both families on both hosts: red 0 and 1 on a, 2 and 3 on b; blue 0 on a, 1 on b. */
async function twoFamilies(fleet: NamespaceFleet): Promise<{ red: TestMember[]; blue: TestMember[] }> {
  for (const host of [fleet.a, fleet.b]) {
    for (const family of [RED, BLUE]) await host.network.ensure(family, fleet.options(host));
  }
  const red = [];
  for (const id of [0, 1, 2, 3]) red.push(await fleet.addMember(id < 2 ? fleet.a : fleet.b, RED, id));
  return { red, blue: [await fleet.addMember(fleet.a, BLUE, 0), await fleet.addMember(fleet.b, BLUE, 1)] };
}

function at<T>(list: readonly T[], index: number): T {
  const item = list[index];
  if (item === undefined) throw new Error(`nothing at ${index}`);
  return item;
}

Deno.test({
  name: "members of a family reach each other on two hosts, and nothing crosses between twins",
  ignore: !root,
}, async () => {
  await withFleet(async (fleet, tool) => {
    const { red, blue } = await twoFamilies(fleet);
    deepStrictEqual(blue.map(({ ip4 }) => ip4), red.slice(0, 2).map(({ ip4 }) => ip4), "the same inner addresses");
    const capture = new Map<TestMember, TestSocket>();
    for (const member of [...red, ...blue]) capture.set(member, await tool.raw(member.namespace, "eth0"));
    for (const [key, port] of [["ip4", 5004], ["ip6", 5006]] as const) {
      const sockets = new Map<TestMember, TestSocket>();
      for (const member of [...red, ...blue]) {
        sockets.set(member, await tool.udp(member.namespace, addressBytes(key === "ip4" ? "0.0.0.0" : "::"), port));
      }
      const expected = new Map<TestMember, Set<string>>();
      for (const family of [red, blue]) {
        for (const to of family) {
          const wanted = new Set<string>();
          for (const from of family.filter((member) => member !== to)) {
            const said = `SECRET ${from.mac} to ${to[key]}`;
            wanted.add(said);
            await sockets.get(from)?.sendTo(new Uint8Array(text(said)), addressBytes(to[key]), port);
          }
          expected.set(to, wanted);
        }
      }
      const start = performance.now();
      for (const [member, wanted] of expected) {
        const heard = new Set<string>();
        await sockets.get(member)?.drainUntil((frame) =>
          heard.add(new TextDecoder().decode(frame)).size === wanted.size
        );
        deepStrictEqual(heard, wanted, `${key} datagrams to ${member.mac}`);
      }
      ok(performance.now() - start < 1000, "within a second");
    }
    for (const [member, socket] of capture) {
      const frames = await socket.drain();
      ok(frames.length > 0);
      const prefix = addressBytes(member.ip6).slice(0, 8);
      for (const frame of frames) {
        const source = [...frame.subarray(6, 10)];
        deepStrictEqual(
          source,
          member.mac.split(":").slice(0, 4).map((octet) => parseInt(octet, 16)),
          "of this family",
        );
        if (frame[12] === 0x86 && frame[22] !== 0xfe && frame[22] !== 0) {
          deepStrictEqual([...frame.subarray(22, 30)], prefix);
        }
      }
    }
    const shown = await fleet.a.network.show(RED);
    deepStrictEqual(shown.members.map(({ cloneId, device, up, ip4 }) => [cloneId, device, up, ip4]), [
      [0, at(red, 0).vif, true, "10.83.0.1"],
      [1, at(red, 1).vif, true, "10.83.0.2"],
    ]);
    deepStrictEqual(shown.settings.peers, [fleet.b.address]);
  });
});

Deno.test({ name: "nothing forged by a member or a stranger arrives", ignore: !root }, async () => {
  await withFleet(async (fleet, tool) => {
    const { red, blue } = await twoFamilies(fleet);
    const [parent, liar, far, farther] = [at(red, 0), at(red, 1), at(red, 2), at(red, 3)];
    const { gatewayMac, gateway4, gatewayLinkLocal6, macPrefix } = fleet.a.network.plan.family(RED);
    const captures: [string, TestSocket][] = [];
    for (const [index, member] of [parent, far, farther, ...blue].entries()) {
      captures.push([`member ${index}`, await tool.raw(member.namespace, "eth0")]);
    }
    captures.push([
      "red's gateway on a",
      await tool.raw(`${fleet.a.prefix}${RED.vni.toString(16).padStart(6, "0")}`, "br0"),
    ]);
    captures.push([
      "red's gateway on b",
      await tool.raw(`${fleet.b.prefix}${RED.vni.toString(16).padStart(6, "0")}`, "br0"),
    ]);
    const mine = await tool.raw(liar.namespace, "eth0");
    let marks = 0;
    const mark = () => text(`MARK-${(marks++).toString().padStart(4, "0")}`);
    /** Frames end with the mark, in a payload or in the padding, so that it is found whatever becomes of the rest. */
    const padded = (frame: Uint8Array, bytes: number[]) => new Uint8Array([...frame, ...bytes]);
    const arrivals = async (marked: ReadonlyMap<string, number[]>) => {
      await pause(150);
      const arrived: string[] = [];
      for (const [where, socket] of captures) {
        for (const frame of await socket.drain()) {
          for (const [what, bytes] of marked) if (holds(frame, bytes)) arrived.push(`${what} at ${where}`);
        }
      }
      return arrived;
    };
    const send = async (socket: TestSocket, frames: Record<string, (bytes: number[]) => Uint8Array>) => {
      const marked = new Map(Object.keys(frames).map((name) => [name, mark()]));
      for (const [name, build] of Object.entries(frames)) await socket.send(build(marked.get(name) ?? []));
      return await arrivals(marked);
    };

    const toAll = { from: liar.mac, to: BROADCAST };
    const toParent = { from: liar.mac, to: parent.mac };
    const ports: [number, number] = [4000, 4000];
    const own4 = { from: liar.ip4, to: far.ip4 };
    const honest = await send(mine, {
      ip4: (m) => udp(toAll, own4, ports, m),
      ip6: (m) => udp({ from: liar.mac, to: "33:33:00:00:00:01" }, { from: liar.ip6, to: "ff02::1" }, ports, m),
      arp: (m) => padded(arp(toAll, 1, { mac: liar.mac, ip: liar.ip4 }, { mac: "00:00:00:00:00:00", ip: far.ip4 }), m),
      advert: (m) =>
        padded(
          neighbourAdvert(
            { from: liar.mac, to: "33:33:00:00:00:01" },
            { from: liar.ip6, to: "ff02::1" },
            liar.ip6,
            liar.mac,
          ),
          m,
        ),
    });
    for (const what of ["ip4", "ip6", "arp", "advert"]) {
      for (const where of ["member 0", "member 1", "member 2"]) {
        ok(honest.includes(`${what} at ${where}`), `${what} at ${where}, of ${honest.join(", ")}`);
      }
    }
    ok(!honest.some((arrival) => /member [34]/.test(arrival)), "and at no twin");

    const six = { from: liar.mac, to: "33:33:00:00:00:01" };
    const all6 = "ff02::1";
    const forged = await send(mine, {
      "another member's MAC": (m) => udp({ from: farther.mac, to: BROADCAST }, own4, ports, m),
      "the gateway's MAC": (m) => udp({ from: gatewayMac, to: BROADCAST }, own4, ports, m),
      "a MAC of no plan": (m) => udp({ from: "00:16:3e:00:00:01", to: BROADCAST }, own4, ports, m),
      "a group MAC as sender": (m) => udp({ from: "01:00:5e:00:00:01", to: BROADCAST }, own4, ports, m),
      "another member's IP": (m) => udp(toAll, { from: farther.ip4, to: far.ip4 }, ports, m),
      "another member's IP, TCP": (m) => tcp(toParent, { from: farther.ip4, to: parent.ip4 }, ports, m),
      "the gateway's IP": (m) => udp(toParent, { from: gateway4, to: parent.ip4 }, ports, m),
      "an outside IP": (m) => udp(toAll, { from: "192.0.2.1", to: far.ip4 }, ports, m),
      "another member's IPv6": (m) => udp(six, { from: farther.ip6, to: all6 }, ports, m),
      "another's link-local IPv6": (m) => udp(six, { from: farther.linkLocal6, to: all6 }, ports, m),
      "the twin family's IPv6": (m) => udp(six, { from: at(blue, 0).ip6, to: all6 }, ports, m),
      "a DHCP server": (m) => udp(toAll, own4, [67, 68], m),
      "a tagged frame": (m) => tagged(udp(toAll, own4, ports, m), 7),
      "no IP at all": (m) => ethernet(toAll, 0x88b5, m),
      "spanning tree": (m) => ethernet({ from: liar.mac, to: "01:80:c2:00:00:00" }, 0x26, [0x42, 0x42, 3, ...m]),
      "ARP reply for the gateway": (m) =>
        padded(arp(toAll, 2, { mac: liar.mac, ip: gateway4 }, { mac: parent.mac, ip: parent.ip4 }), m),
      "ARP reply for a member": (m) =>
        padded(arp(toParent, 2, { mac: liar.mac, ip: far.ip4 }, { mac: parent.mac, ip: parent.ip4 }), m),
      "ARP of a foreign MAC": (m) =>
        padded(arp(toAll, 2, { mac: farther.mac, ip: liar.ip4 }, { mac: parent.mac, ip: parent.ip4 }), m),
      "ARP request as the gateway": (m) =>
        padded(arp(toAll, 1, { mac: liar.mac, ip: gateway4 }, { mac: BROADCAST, ip: parent.ip4 }), m),
      "ARP probe for a member's IP": (m) =>
        padded(arp(toAll, 1, { mac: liar.mac, ip: "0.0.0.0" }, { mac: BROADCAST, ip: parent.ip4 }), m),
      "neighbour advert for a member": (m) =>
        padded(neighbourAdvert(six, { from: liar.ip6, to: all6 }, far.ip6, liar.mac), m),
      "neighbour advert of a foreign MAC": (m) =>
        padded(neighbourAdvert(six, { from: liar.ip6, to: all6 }, liar.ip6, far.mac), m),
      "router advert": (m) =>
        icmp6(six, { from: liar.linkLocal6, to: all6 }, 134, [64, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, ...m]),
      "redirect": (m) =>
        icmp6(six, { from: liar.linkLocal6, to: all6 }, 137, [0, 0, 0, 0, ...Array<number>(32).fill(1), ...m]),
      "VXLAN to the other host": (m) =>
        vxlan(
          { from: liar.mac, to: gatewayMac },
          { from: liar.ip4, to: fleet.b.address },
          BLUE.vni,
          udp(toAll, own4, ports, m),
        ),
      "VXLAN to its own host": (m) =>
        vxlan(
          { from: liar.mac, to: gatewayMac },
          { from: liar.ip4, to: fleet.a.address },
          BLUE.vni,
          udp(toAll, own4, ports, m),
        ),
    });
    // What a member sends to the gateway's own MAC is the gateway's to refuse: it hears it, and nobody else may.
    deepStrictEqual(forged.filter((arrival) => !/^VXLAN to .* at red's gateway on a$/.test(arrival)), []);
    ok(at((await fleet.a.network.show(RED)).members, 1).blocked > 10, "counted");

    // A request for an address in another's name goes out in the member's own.
    const asked = mark();
    await mine.send(
      padded(arp(toAll, 1, { mac: liar.mac, ip: parent.ip4 }, { mac: BROADCAST, ip: farther.ip4 }), asked),
    );
    const heard = (await at(captures, 2)[1].drainUntil((frame) => holds(frame, asked))).filter((frame) =>
      holds(frame, asked)
    );
    strictEqual(heard.length, 1);
    deepStrictEqual([...at(heard, 0).subarray(28, 32)], ip4Bytes(liar.ip4));

    // The stranger sends to host a what a peer could: a frame of red's clone 3, to all.
    const outside = await tool.raw(fleet.stranger.namespace, "eth0");
    const wire = { from: fleet.stranger.mac, to: fleet.a.mac };
    const inner = (m: number[]) =>
      udp({ from: farther.mac, to: BROADCAST }, { from: farther.ip4, to: parent.ip4 }, ports, m);
    const asStranger = { from: fleet.stranger.address, to: fleet.a.address };
    const asPeer = { from: fleet.b.address, to: fleet.a.address };
    await arrivals(new Map());
    deepStrictEqual(
      await send(outside, {
        "VXLAN from a stranger": (m) => vxlan(wire, asStranger, RED.vni, inner(m)),
        "VXLAN of no family": (m) => vxlan(wire, asPeer, RED.vni + 1, inner(m)),
        "bare frame of a member": (m) =>
          udp({ from: farther.mac, to: BROADCAST }, { from: farther.ip4, to: parent.ip4 }, ports, m),
        "a local member's MAC": (m) =>
          vxlan(
            wire,
            asPeer,
            RED.vni,
            udp({ from: parent.mac, to: BROADCAST }, { from: farther.ip4, to: parent.ip4 }, ports, m),
          ),
        "a local member's IP": (m) =>
          vxlan(
            wire,
            asPeer,
            RED.vni,
            udp({ from: farther.mac, to: BROADCAST }, { from: liar.ip4, to: parent.ip4 }, ports, m),
          ),
        "the gateway's ARP": (m) =>
          vxlan(
            wire,
            asPeer,
            RED.vni,
            padded(
              arp({ from: farther.mac, to: BROADCAST }, 2, { mac: farther.mac, ip: gateway4 }, {
                mac: parent.mac,
                ip: parent.ip4,
              }),
              m,
            ),
          ),
        "a router's advert": (m) =>
          vxlan(
            wire,
            asPeer,
            RED.vni,
            icmp6({ from: gatewayMac, to: "33:33:00:00:00:01" }, { from: gatewayLinkLocal6, to: all6 }, 134, m),
          ),
        "a MAC of another family": (m) =>
          vxlan(
            wire,
            asPeer,
            RED.vni,
            udp({ from: at(blue, 1).mac, to: BROADCAST }, { from: farther.ip4, to: parent.ip4 }, ports, m),
          ),
      }),
      [],
    );
    // In a peer's name, which plain VXLAN cannot tell from the peer: it arrives, until the family is sealed.
    const inPeersName = { "VXLAN in a peer's name": (m: number[]) => vxlan(wire, asPeer, RED.vni, inner(m)) };
    ok((await send(outside, inPeersName)).includes("VXLAN in a peer's name at member 0"));
    await fleet.a.network.ensure(RED, fleet.options(fleet.a, { sealed: true }));
    deepStrictEqual(await send(outside, inPeersName), []);
    strictEqual(macPrefix, liar.mac.slice(0, 11));
  });
});

Deno.test(
  { name: "inherited connections end at once; egress is closed until it is opened", ignore: !root },
  async () => {
    await withFleet(async (fleet, tool) => {
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
  await withFleet(async (fleet, tool) => {
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

Deno.test({ name: "asked twice is as asked once; removed is gone; leftovers are swept", ignore: !root }, async () => {
  await withFleet(async (fleet) => {
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
  await withFleet(async (fleet) => {
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
