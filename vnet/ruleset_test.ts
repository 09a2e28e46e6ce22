import { deepStrictEqual, ok, rejects, strictEqual, throws } from "node:assert/strict";
import fc from "fast-check";
import { dhcpConfig, dhcpHosts } from "./dhcp.ts";
import { guestIdentity } from "./identity.ts";
import { KeyedQueue } from "./keyed_queue.ts";
import { Naming } from "./names.ts";
import { blockedPackets, differenceFrom, renderTable } from "./nft_text.ts";
import { AddressPlan, DEFAULT_RANGES, type Family } from "./plan.ts";
import { familyTables, hostTable, type LocalMember, renderFamily, renderHost } from "./ruleset.ts";
import { checkSettings, type NetworkOptions, SettingsError, settingsOf } from "./settings.ts";

const plan = new AddressPlan(DEFAULT_RANGES);
const family: Family = { id: "0b5b6a4e-6a3c-4c8c-9d1e-7f0e8f3f6a11", vni: 0x5f0102 };
const names = new Naming().of(family.vni);
const options: NetworkOptions = { underlay: { device: "eth0", address: "192.0.2.1" }, peers: ["192.0.2.2"] };
const member = (cloneId: number): LocalMember => ({ ...plan.member(family, cloneId), device: `vif${cloneId}.0` });
const chain = (tables: ReturnType<typeof familyTables>, kind: string, name: string) =>
  tables.find((table) => table.family === kind)?.chains.find((chain) => chain.name === name)?.rules.join("\n") ?? "";

Deno.test("closed by default: no rule forwards or translates anything", () => {
  const tables = familyTables(plan.family(family), settingsOf(options), [member(0)], "bridge");
  const rules = chain(tables, "inet", "routed") + chain(tables, "inet", "translated");
  ok(!/masquerade|oifname "uplink0"/.test(rules), rules);
  const host = renderHost(hostTable(plan.family(family), settingsOf(options), names, null));
  ok(!/masquerade|forward.*\n.*accept;.*\n.*accept$/m.test(host));
});

Deno.test("inherited connections are rejected where the kernel can, and dropped where it cannot", () => {
  const rules = (place: "netdev" | "bridge" | "none") => {
    const tables = familyTables(plan.family(family), settingsOf(options), [member(0)], place);
    return { vif: chain(tables, "netdev", "member_0"), bridge: chain(tables, "bridge", "inherited") };
  };
  ok(/reject with tcp reset/.test(rules("netdev").vif) && rules("netdev").bridge === "");
  const { vif, bridge } = rules("bridge");
  ok(!/reject/.test(vif) && /reject with tcp reset/.test(bridge));
  const mark = /meta mark set (0x[\da-f]+) accept/.exec(vif)?.[1];
  ok(mark !== undefined && bridge.split("\n").every((rule) => rule.startsWith(`meta mark ${mark} `)), bridge);
  ok(bridge.endsWith("drop"), "what is marked goes no further");
  ok(!/reject|meta mark/.test(rules("none").vif + rules("none").bridge));
});

Deno.test("what egress allows, and what it never does, in that order", () => {
  const egress = {
    allow: [{ to: "198.51.100.0/24", protocol: "tcp" as const, ports: [80, 443] as const }, { to: "203.0.113.0/24" }],
    deny: ["198.51.100.128/25"],
    dns: "192.0.2.53",
  };
  const rules = chain(
    familyTables(plan.family(family), settingsOf({ ...options, egress }), [], "none"),
    "inet",
    "routed",
  );
  const positions = [
    "198.51.100.128/25 reject",
    "192.0.2.53",
    "198.51.100.0/24 tcp dport 80-443 accept",
    "203.0.113.0/24 accept",
  ]
    .map((text) => rules.indexOf(text));
  ok(positions.every((at) => at >= 0), rules);
  deepStrictEqual(positions, [...positions].sort((a, b) => a - b));
});

Deno.test("VXLAN is for the family's peers on the underlay's device, sealed only if so asked; for nobody where there are none", () => {
  const rules = (more: Partial<NetworkOptions>) =>
    hostTable(plan.family(family), settingsOf({ ...options, ...more }), names, null).chains[0]?.rules;
  deepStrictEqual(rules({}), ['iifname != "eth0" drop', "ip saddr != { 192.0.2.2 } drop"]);
  deepStrictEqual(rules({ sealed: true })?.at(-1), "meta secpath missing drop");
  deepStrictEqual(rules({ peers: [] }), ['iifname != "eth0" drop', "drop"]);
  const six = { underlay: { device: "eth0", address: "2001:db8::1" }, peers: ["2001:db8::2"] };
  deepStrictEqual(rules(six)?.[1], "ip6 saddr != { 2001:db8::2 } drop");
});

Deno.test("rules depend on what is there, not on the order it came in", () => {
  const one = settingsOf({ ...options, peers: ["192.0.2.3", "192.0.2.2", "192.0.2.3"] });
  const two = settingsOf({ ...options, peers: ["192.0.2.2", "192.0.2.3"] });
  deepStrictEqual(one, two);
  strictEqual(
    renderFamily(familyTables(plan.family(family), one, [member(1)], "netdev")),
    renderFamily(familyTables(plan.family(family), two, [member(1)], "netdev")),
  );
});

Deno.test("a difference between rules asked for and rules found is told", () => {
  const table = { family: "inet" as const, name: "t", chains: [{ name: "c", rules: ["drop", "accept"] }] };
  const rule = { rule: { family: "inet", table: "t", chain: "c" } };
  const listed = [
    { table: { family: "inet", name: "t" } },
    { chain: { family: "inet", table: "t", name: "c" } },
    rule,
    rule,
  ];
  strictEqual(differenceFrom([table], listed), undefined);
  strictEqual(differenceFrom([table], listed.slice(0, -1)), "inet t c has 1 rules, not 2");
  strictEqual(differenceFrom([table], listed.slice(0, 1)), "inet t c has no rules, not 2");
  strictEqual(differenceFrom([table], [...listed, { table: { family: "ip", name: "x" } }]), "ip x should not be there");
  strictEqual(renderTable(table), "table inet t {\n  chain c {\n    drop\n    accept\n  }\n}\n");
  const counted = (packets: number, comment: string) => ({
    rule: {
      family: "netdev",
      table: "t",
      chain: "c",
      comment,
      expr: [{ counter: { packets, bytes: 0 } }, { drop: null }],
    },
  });
  deepStrictEqual(
    blockedPackets([counted(3, "blocked"), counted(4, "blocked"), counted(9, "other")]),
    new Map([["c", 7]]),
  );
});

Deno.test("settings survive their file, and nothing else is taken from one", () => {
  const settings = settingsOf({
    ...options,
    underlay: { ...options.underlay, group: "239.1.2.3" },
    egress: { allow: [{ to: "0.0.0.0/0", protocol: "udp", ports: [53, 53] }, { to: "10.0.0.0/8" }], dns: "192.0.2.53" },
    rateMbps: 100,
  });
  deepStrictEqual(checkSettings(JSON.parse(JSON.stringify(settings))), settings);
  fc.assert(fc.property(fc.jsonValue(), (value) => {
    try {
      checkSettings(value);
    } catch (error) {
      ok(error instanceof SettingsError, String(error));
    }
  }));
});

Deno.test("settings that could not be carried out, or would say more than they should, are refused", () => {
  const underlay = options.underlay;
  const bad: Partial<Record<keyof NetworkOptions, unknown>>[] = [
    { underlay: { ...underlay, device: 'eth0" accept #' } },
    { underlay: { ...underlay, device: "a-name-of-16-chr" } },
    { underlay: { ...underlay, address: "192.0.2.1; drop" } },
    { underlay: { ...underlay, group: "192.0.2.9" } },
    { underlay: { ...underlay, port: 0 } },
    { peers: ["192.0.2.1"] },
    { peers: ["2001:db8::2"] },
    { peers: ["192.0.2.2 }\n"] },
    { peers: Array(1025).fill("192.0.2.2") },
    { egress: { allow: [{ to: "0.0.0.0/0", ports: [1, 2] }] } },
    { egress: { allow: [{ to: "0.0.0.0/0", protocol: "tcp", ports: [9, 2] }] } },
    { egress: { allow: [{ to: "0.0.0.0" }] } },
    { egress: { allow: [], dns: "ns.example" } },
    { rateMbps: 0.5 },
    { mtu: 1200 },
    { sealed: "yes" },
  ];
  for (const change of bad) {
    const value: unknown = { ...options, ...change };
    throws(() => settingsOf(value as NetworkOptions), SettingsError, JSON.stringify(change));
  }
});

Deno.test("names are told apart from others', and fit the kernel's 15 characters", () => {
  const naming = new Naming();
  deepStrictEqual(names, {
    namespace: "sf-5f0102",
    uplink: "sf-u5f0102",
    uplinkPrefix: "sf-u",
    hostTable: "sf_5f0102",
    directory: "/run/snowflock/net/sf-5f0102",
  });
  for (const name of [names.namespace, names.uplink, names.hostTable]) strictEqual(naming.vniOf(name), family.vni);
  for (const name of ["sf-", "sf-5f010", "sf-5f01022", "sf-u5f010g", "xsf-5f0102", "sf-x5f0102", "sf_u"]) {
    strictEqual(naming.vniOf(name), undefined, name);
  }
  strictEqual(new Naming({ prefix: "abcdefg-" }).of(0xffffff).uplink.length, 15);
  for (const prefix of ["sf", "sf-sf-", "Sf-", "abcdefgh-", "-", "1f-"]) {
    throws(() => new Naming({ prefix }), RangeError);
  }
  for (const stateDirectory of ["/", "/run", "run/x", "/run/../etc", "/run/a b"]) {
    throws(() => new Naming({ stateDirectory }), RangeError, stateDirectory);
  }
});

Deno.test("DHCP serves the members by MAC, and has no pool", () => {
  const config = dhcpConfig(plan.family(family), settingsOf(options), names);
  ok(config.includes("dhcp-range=10.83.0.0,static,255.255.0.0,infinite\n"));
  ok(config.includes("port=0\n") && config.includes("dhcp-ignore-clid\n"));
  strictEqual(
    dhcpHosts(plan.family(family), [member(0), member(9)]),
    [
      "5a:5f:01:02:00:00,10.83.0.1,sf-0b5b6a4e-0,infinite\n",
      "5a:5f:01:02:00:09,10.83.0.10,sf-0b5b6a4e-9,infinite\n",
    ].join(""),
  );
});

Deno.test("a guest is told who it is; a name that is none is replaced", () => {
  deepStrictEqual(guestIdentity(plan, family, 3, { hostname: "web" }), {
    mac: "5a:5f:01:02:00:03",
    address: "10.83.0.4/16",
    gateway: "10.83.255.254",
    address6: "fd53:4e4f:575f:102:585f:1ff:fe02:3/64",
    mtu: "1380",
    hostname: "web-3",
  });
  strictEqual(guestIdentity(plan, family, 0, { hostname: "web" }).hostname, "web");
  for (const hostname of ["", "a b", "-x", "x-", "a\nb", "x".repeat(64)]) {
    strictEqual(guestIdentity(plan, family, 3, { hostname }).hostname, "sf-0b5b6a4e-3");
  }
});

Deno.test("a queue keeps one key's tasks in order and apart, whatever becomes of each", async () => {
  const queue = new KeyedQueue();
  const log: string[] = [];
  const slow = Promise.withResolvers<void>();
  const first = queue.run("a", async () => {
    await slow.promise;
    log.push("a1");
    throw new Error("no");
  });
  const second = queue.run("a", () => Promise.resolve(log.push("a2")));
  await queue.run("b", () => Promise.resolve(log.push("b1")));
  slow.resolve();
  await rejects(first, /no/);
  await second;
  deepStrictEqual(log, ["b1", "a1", "a2"]);
});
