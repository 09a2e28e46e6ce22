import { deepStrictEqual, ok, throws } from "node:assert/strict";
import { sealLines } from "./seal.ts";
import { SettingsError } from "./settings.ts";

const underlay = { device: "eth0", address: "192.0.2.1" };
const key = (fill: number) => new Uint8Array(20).fill(fill);
const peer = { address: "192.0.2.2", outbound: { spi: 1001, key: key(1) }, inbound: { spi: 1002, key: key(2) } };

Deno.test("policies of both directions come before the keys, and say the same as the peer's", () => {
  const [out = "", inward = "", stateIn = "", stateOut = "", ...rest] = sealLines(underlay, peer);
  deepStrictEqual(rest, []);
  ok(out.startsWith("xfrm policy update src 192.0.2.1/32 dst 192.0.2.2/32 proto udp dport 4789 dir out "));
  ok(inward.startsWith("xfrm policy update src 192.0.2.2/32 dst 192.0.2.1/32 proto udp dport 4789 dir in "));
  ok([out, inward].every((line) => line.endsWith("mode transport level required")));
  ok(
    stateIn.includes("src 192.0.2.2 dst 192.0.2.1 proto esp spi 1002 ") &&
      stateIn.includes(` 0x${"02".repeat(20)} 128`),
  );
  ok(stateOut.includes("src 192.0.2.1 dst 192.0.2.2 proto esp spi 1001 ") && stateOut.includes("flag esn"));
  // The peer's lines, made of the same two keys, are the same associations.
  const other = sealLines({ device: "eth1", address: "192.0.2.2" }, {
    address: "192.0.2.1",
    outbound: peer.inbound,
    inbound: peer.outbound,
  });
  deepStrictEqual(other.slice(2), [stateOut, stateIn]);
});

Deno.test("the underlay's port and IP version are those of the policies", () => {
  const lines = sealLines({ device: "eth0", address: "2001:db8::1", port: 4790 }, { ...peer, address: "2001:db8::2" });
  ok(lines[0]?.includes("src 2001:db8::1/128 dst 2001:db8::2/128 proto udp dport 4790 "));
});

Deno.test("keys of another length and reserved indexes are refused", () => {
  for (
    const outbound of [{ spi: 1001, key: new Uint8Array(16) }, { spi: 255, key: key(1) }, { spi: 2 ** 32, key: key(1) }]
  ) {
    throws(() => sealLines(underlay, { ...peer, outbound }), SettingsError);
  }
});
