import assert from "node:assert/strict";
import { hostName, identityNodes, parseSymbols } from "./nodes.ts";

const IDENTITY = {
  id: 3,
  ticket: "t1",
  family: "web",
  name: "web_t1.3",
  uuid: "u",
  seed: new Uint8Array(64).fill(0xab),
};

Deno.test("a clone is told who it is", () => {
  assert.deepEqual(identityNodes({ ...IDENTITY, address: "10.77.0.4/16" }), {
    "data/snowflock/id": "3",
    "data/snowflock/ticket": "t1",
    "data/snowflock/family": "web",
    "data/snowflock/name": "web_t1.3",
    "data/snowflock/uuid": "u",
    "data/snowflock/address": "10.77.0.4/16",
    "data/snowflock/hostname": "web-t1-3",
    "data/snowflock/seed": "ab".repeat(64),
  });
});

Deno.test("what the guest's shell could not read is refused", () => {
  assert.throws(() => identityNodes({ ...IDENTITY, name: "x".repeat(256) }), /one line under 256/);
  assert.throws(() => identityNodes({ ...IDENTITY, family: "a\nb" }), /one line under 256/);
  assert.throws(() => identityNodes({ ...IDENTITY, seed: new Uint8Array(4) }), /64 bytes/);
});

Deno.test("host names keep to RFC 1123", () => {
  assert.equal(hostName("web.t1_3"), "web-t1-3");
  assert.equal(hostName("..."), "clone");
  assert.equal(hostName("-a-".padEnd(80, "b")).length, 62);
});

Deno.test("symbols are read, rubbish is not", () => {
  const symbols = parseSymbols(
    new TextEncoder().encode(
      "vmemmap_base=ffffffff82a00000\nevil=1\nnode_data=xyz\n__start_BTF=0xffffffff81000000\nphys_base=",
    ),
  );
  assert.deepEqual([...symbols], [["vmemmap_base", 0xffffffff82a00000n], ["__start_BTF", 0xffffffff81000000n]]);
  assert.equal(parseSymbols(new Uint8Array(70_000)).size, 0);
});
