/** The real data path on two hosts that are network namespaces of the test's own. Needs root, `ip`, `nft` and `dnsmasq`. */
import { deepStrictEqual, ok, strictEqual } from "node:assert/strict";
import { NativeCommands } from "./native_commands.ts";
import {
  addressBytes,
  arp,
  BROADCAST,
  ethernet,
  holds,
  icmp6,
  ip4Bytes,
  neighbourAdvert,
  tagged,
  tcp,
  text,
  udp,
  vxlan,
} from "./testing/frames.ts";
import { type TestMember } from "./testing/namespace_fleet.ts";
import type { TestSocket } from "./testing/packet_tool.ts";
import { at, BLUE, pause, RED, twoFamilies, withFleet } from "./testing/with_fleet.ts";

const runnerOf = (hostNamespace?: string) => new NativeCommands(hostNamespace === undefined ? {} : { hostNamespace });
const root = Deno.uid() === 0;

Deno.test({
  name: "members of a family reach each other on two hosts, and nothing crosses between twins",
  ignore: !root,
}, async () => {
  await withFleet(runnerOf, async (fleet, tool) => {
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
  await withFleet(runnerOf, async (fleet, tool) => {
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
