import assert from "node:assert/strict";
import { Config, ConfigError, configHelp, configTable, parseConfig, settings } from "./mod.ts";

function problems(text: string): readonly string[] {
  try {
    parseConfig(text);
  } catch (error) {
    assert.ok(error instanceof ConfigError);
    return error.problems;
  }
  return [];
}

const CLUSTER = `
host: h1
cluster:
  listen: { address: 192.0.2.1 }
  certificate: /etc/snowflock/host.pem
  key: /etc/snowflock/host.key
  authority: /etc/snowflock/ca.pem
  policy: { command: [/usr/bin/place, --fast] }
  peers:
    - { name: h2, address: 192.0.2.2 }
    - { name: h3, address: "2001:db8::3", port: 99 }
`;

Deno.test("nothing is all defaults", () => {
  for (const text of ["", "{}", "# a comment\n", "null"]) {
    const config = parseConfig(text);
    assert.equal(config.socket, "/run/snowflock/agent.sock");
    assert.equal(config.limits.clonesPerTicket, 256);
    assert.equal(config.cluster.policy, "pack");
    assert.deepEqual(config.cluster.peers, []);
    assert.deepEqual(config, Config.parse({}));
  }
});

Deno.test("YAML and JSON", () => {
  const config = parseConfig(CLUSTER);
  assert.deepEqual(config.cluster.peers, [
    { name: "h2", address: "192.0.2.2", port: 7077 },
    { name: "h3", address: "2001:db8::3", port: 99 },
  ]);
  assert.deepEqual(parseConfig(JSON.stringify(config)), config);
});

Deno.test("problems are told all at once, with their places", () => {
  assert.deepEqual(problems("limits: {clonesPerTicket: 0, clones: 3}\nsokcet: /x\nguests: {enabled: 'yes'}"), [
    "limits.clonesPerTicket: Too small: expected number to be >=1",
    "limits.clones: there is no such setting",
    "guests.enabled: Invalid input: expected boolean, received string",
    "sokcet: there is no such setting",
  ]);
  assert.deepEqual(problems("socket: relative"), ["socket: must be an absolute path"]);
  assert.deepEqual(problems(`socket: /${"x".repeat(107)}`), ["socket: must be at most 107 bytes"]);
  assert.deepEqual(problems("- 1"), ["Invalid input: expected object, received array"]);
});

Deno.test("what does not fit together is refused", () => {
  assert.deepEqual(problems("cluster: {peers: [{name: h2, address: 192.0.2.2}]}"), [
    "cluster.listen: is needed with peers",
  ]);
  assert.deepEqual(problems("cluster: {listen: {address: 192.0.2.1}}"), [
    "cluster: certificate, key and authority are needed with listen",
  ]);
  assert.deepEqual(problems(CLUSTER.replace("h3", "h2")), ["cluster.peers: h2 is there twice"]);
  assert.deepEqual(problems(CLUSTER.replace("h3", "h1")), ["cluster.peers: this host is among them"]);
  assert.deepEqual(problems("network: {egress: [{to: 0.0.0.0/0, ports: [5, 4]}]}"), [
    "network.egress.0.ports: need tcp or udp",
    "network.egress.0.ports: must not fall",
  ]);
  assert.deepEqual(problems("multicast: {groups: [192.0.2.1]}").length, 1);
  assert.deepEqual(problems("cluster: {policy: random}").length, 1);
});

Deno.test("bad text is an error of one line", () => {
  assert.match(problems("a: [")[0] ?? "", /^Flow sequence/);
  assert.match(problems("socket: /a\nsocket: /b")[0] ?? "", /^Map keys must be unique/);
  assert.deepEqual(problems(" ".repeat(1024 * 1024 + 1)), ["it has over 1048576 bytes"]);
  const bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n" +
    [..."bcdefgh"].map((c, i) => `${c}: &${c} [${Array(9).fill(`*${"abcdefg"[i]}`).join(",")}]`).join("\n");
  assert.deepEqual(problems(bomb), ["it has too many aliases"]);
});

Deno.test("every setting has a description in the manual", () => {
  const all = settings();
  for (const setting of all) assert.ok(setting.description.length > 0, setting.name);
  assert.ok(all.length > 35, `${all.length}`);
  const names = all.map((setting) => setting.name);
  assert.ok(names.includes("limits.clonesPerTicket") && names.includes("cluster.peers[].address"));
  assert.match(configHelp(), / {2}limits\.clonesPerTicket +clones of one ticket \(integer 1\.\.1000\) \[256\]\n/);
  assert.equal(configTable().trim().split("\n").length, all.length + 2);
});
