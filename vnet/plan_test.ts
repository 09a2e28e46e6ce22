import { deepStrictEqual, ok, rejects, strictEqual, throws } from "node:assert/strict";
import fc from "fast-check";
import { AddressError, formatIp4, formatIp6, interfaceId, parseIp4, parseIp6, parseMac } from "./addresses.ts";
import { AddressPlan, DEFAULT_RANGES, type Family, PlanRangeError } from "./plan.ts";
import { allocateVni, LocalRegistry, sliceOf } from "./registry.ts";

const ID = "0b5b6a4e-6a3c-4c8c-9d1e-7f0e8f3f6a11";

const octet = fc.integer({ min: 0, max: 63 }).map((high) => high * 4 + 2);
const ranges = fc.record({
  vni: fc.tuple(fc.integer({ min: 1, max: 0xffffff }), fc.integer({ min: 1, max: 0xffffff })).map(([a, b]) => ({
    first: Math.min(a, b),
    last: Math.max(a, b),
  })),
  macFirstOctet: octet,
  subnet4: fc.integer({ min: 8, max: 29 }).map((length) => `10.0.0.0/${length}`),
  prefix6: fc.integer({ min: 0, max: 0xff }).map((byte) => `fd${byte.toString(16).padStart(2, "0")}::/40`),
});
/** A plan, and two members within it. */
const twoMembers = ranges.chain((r) => {
  const plan = new AddressPlan(r);
  const member = fc.record({
    vni: fc.integer({ min: r.vni.first, max: r.vni.last }),
    id: fc.integer({ min: 0, max: plan.capacity - 1 }),
  });
  return fc.tuple(fc.constant(plan), member, member);
});

Deno.test("the default plan, in full", () => {
  const plan = new AddressPlan(DEFAULT_RANGES);
  const family: Family = { id: ID, vni: 0x5f0102 };
  deepStrictEqual(plan.family(family), {
    family,
    macPrefix: "5a:5f:01:02",
    subnet4: "10.83.0.0/16",
    prefixLength4: 16,
    gateway4: "10.83.255.254",
    prefix6: "fd53:4e4f:575f:102::/64",
    gateway6: "fd53:4e4f:575f:102:585f:1ff:fe02:ffff",
    gatewayLinkLocal6: "fe80::585f:1ff:fe02:ffff",
    gatewayMac: "5a:5f:01:02:ff:ff",
    capacity: 65533,
  });
  deepStrictEqual(plan.member(family, 258), {
    cloneId: 258,
    mac: "5a:5f:01:02:01:02",
    ip4: "10.83.1.3",
    ip6: "fd53:4e4f:575f:102:585f:1ff:fe02:102",
    linkLocal6: "fe80::585f:1ff:fe02:102",
  });
});

Deno.test("no two members of a fleet share a MAC or IPv6 address, no two of a family an IPv4 address", () => {
  fc.assert(fc.property(twoMembers, ([plan, a, b]) => {
    const one = plan.member({ id: ID, vni: a.vni }, a.id);
    const two = plan.member({ id: ID, vni: b.vni }, b.id);
    const same = a.vni === b.vni && a.id === b.id;
    strictEqual(one.mac === two.mac, same);
    strictEqual(one.ip6 === two.ip6, same);
    strictEqual(one.linkLocal6 === two.linkLocal6, same);
    strictEqual(one.ip4 === two.ip4, a.id === b.id);
  }));
});

Deno.test("no member has its gateway's addresses, the subnet's own or the broadcast address; all lie in the subnet", () => {
  fc.assert(fc.property(twoMembers, ([plan, { vni, id }]) => {
    const family = { id: ID, vni };
    const { gateway4, gateway6, gatewayMac, prefixLength4 } = plan.family(family);
    const member = plan.member(family, id);
    const network = parseIp4("10.0.0.0");
    const broadcast = network + 2 ** (32 - prefixLength4) - 1;
    ok(parseIp4(member.ip4) > network && parseIp4(member.ip4) < parseIp4(gateway4));
    strictEqual(parseIp4(gateway4), broadcast - 1);
    ok(member.mac !== gatewayMac && member.ip6 !== gateway6);
    strictEqual((parseMac(member.mac)[0] ?? 0) & 3, 2, "locally administered, unicast");
    strictEqual(parseIp6(member.ip6) & 0xffffffffffffffffn, interfaceId(parseMac(member.mac)), "what SLAAC gives");
    strictEqual(plan.cloneIdOf(family, member.ip4), id);
    strictEqual(plan.cloneIdOf(family, member.mac), id);
    strictEqual(plan.cloneIdOf(family, gateway4), undefined);
    strictEqual(plan.cloneIdOf(family, gatewayMac), undefined);
  }));
});

Deno.test("ids beyond the ranges are refused by name", () => {
  const plan = new AddressPlan({ ...DEFAULT_RANGES, subnet4: "10.1.2.0/29" });
  const family = { id: ID, vni: DEFAULT_RANGES.vni.first };
  strictEqual(plan.capacity, 5);
  strictEqual(plan.member(family, 4).ip4, "10.1.2.5");
  throws(
    () => plan.member(family, 5),
    (e) => e instanceof PlanRangeError && /clone id 5 .*10\.1\.2\.0\/29/.test(e.message),
  );
  throws(() => plan.member(family, -1), PlanRangeError);
  throws(() => plan.family({ id: ID, vni: DEFAULT_RANGES.vni.last + 1 }), PlanRangeError);
  throws(() => plan.family({ id: ID.toUpperCase(), vni: family.vni }), AddressError);
});

Deno.test("ranges that cannot work are refused", () => {
  const bad = [
    { macFirstOctet: 0x52 + 1 },
    { macFirstOctet: 0x00 },
    { subnet4: "10.83.0.1/16" },
    { subnet4: "10.83.0.0/30" },
    { subnet4: "224.0.0.0/16" },
    { prefix6: "2001:db8::/40" },
    { prefix6: "fd00::/48" },
    { vni: { first: 0, last: 10 } },
    { vni: { first: 10, last: 9 } },
    { vni: { first: 1, last: 1 << 24 } },
  ];
  for (const change of bad) {
    throws(() => new AddressPlan({ ...DEFAULT_RANGES, ...change }), AddressError, JSON.stringify(change));
  }
});

Deno.test("addresses survive text", () => {
  fc.assert(fc.property(fc.bigInt({ min: 0n, max: (1n << 128n) - 1n }), (value) => {
    strictEqual(parseIp6(formatIp6(value)), value);
    strictEqual(new URL(`http://[${formatIp6(value)}]`).hostname, `[${formatIp6(value)}]`, "the RFC 5952 spelling");
  }));
  fc.assert(
    fc.property(fc.integer({ min: 0, max: 0xffffffff }), (value) => strictEqual(parseIp4(formatIp4(value)), value)),
  );
  for (const text of ["1.2.3", "1.2.3.4.5", "01.2.3.4", "256.1.1.1", "1.2.3.-4", ""]) {
    throws(() => parseIp4(text), AddressError);
  }
  for (const text of ["::1::", "1:2:3", "1:2:3:4:5:6:7:8:9", "g::", "1:2:3:4:5:6:7::8", ":::"]) {
    throws(() => parseIp6(text), AddressError, text);
  }
});

Deno.test("families take different ids until the range is full, and keep them", async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.integer({ min: 1, max: 60 }),
      fc.uniqueArray(fc.uuid(), { minLength: 61, maxLength: 61 }),
      async (size, ids) => {
        const range = { first: 100, last: 99 + size };
        const registry = new LocalRegistry();
        const taken = new Set<number>();
        for (const id of ids.slice(0, size)) taken.add(await allocateVni(registry, range, id));
        strictEqual(taken.size, size);
        ok([...taken].every((vni) => vni >= range.first && vni <= range.last));
        const [first = "", ...rest] = ids;
        const extra = rest.at(-1) ?? "";
        await rejects(
          allocateVni(registry, range, extra),
          (e) => e instanceof PlanRangeError && /taken/.test(e.message),
        );
        const held = await allocateVni(registry, range, first);
        strictEqual(await allocateVni(registry, range, first), held, "the same family, the same id");
        await registry.release(first);
        strictEqual(await allocateVni(new LocalRegistry(registry.entries()), range, extra), held, "the only free one");
      },
    ),
    { numRuns: 30 },
  );
});

Deno.test("a family keeps its id although an id nearer to its hash has become free", async () => {
  const range = { first: 1, last: 2 };
  const registry = new LocalRegistry();
  const ids = Array.from({ length: 9 }, (_, i) => ID.slice(0, -1) + i);
  const first = await allocateVni(registry, range, ids[0] ?? "");
  // One whose first choice is the same id.
  let second: string | undefined;
  for (const id of ids.slice(1)) {
    if (await allocateVni(new LocalRegistry(), range, id) === first) second ??= id;
  }
  ok(second !== undefined);
  const held = await allocateVni(registry, range, second);
  ok(held !== first);
  await registry.release(ids[0] ?? "");
  strictEqual(await allocateVni(registry, range, second), held);
});

Deno.test("hosts' slices are disjoint and cover the range", () => {
  fc.assert(fc.property(fc.integer({ min: 1, max: 40 }), fc.integer({ min: 0, max: 500 }), (hosts, more) => {
    const range = { first: 7, last: 6 + hosts + more };
    let next = range.first;
    for (let position = 0; position < hosts; position++) {
      const slice = sliceOf(range, position, hosts);
      strictEqual(slice.first, next);
      ok(slice.last >= slice.first);
      next = slice.last + 1;
    }
    strictEqual(next, range.last + 1);
  }));
  throws(() => sliceOf({ first: 1, last: 3 }, 0, 4), PlanRangeError);
  throws(() => sliceOf({ first: 1, last: 9 }, 4, 4), PlanRangeError);
});
