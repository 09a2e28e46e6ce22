/** The agent's settings: one strict schema, from which come parsing, defaults, the manual and the JSON schema. */
import { z } from "zod";

const hostName = z.string().regex(/^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$/, "must be a host name without dots");
const path = z.string().regex(/^\/[^\0]*$/, "must be an absolute path").max(1024);
const port = z.int().min(1).max(65535);
const device = z.string().regex(/^[A-Za-z0-9][A-Za-z0-9._-]{0,14}$/, "must be the name of a network device");
const address = z.union([z.ipv4(), z.ipv6()], "must be an IPv4 or IPv6 address");
const group = z.ipv4().regex(/^(22[4-9]|23\d)\./, "must be an IPv4 multicast address");

const limits = z.strictObject({
  ticketsPerDomain: z.int().min(1).max(1000).default(8).describe("open tickets of one domain"),
  clonesPerTicket: z.int().min(1).max(1000).default(256).describe("clones of one ticket"),
  suspendTimeoutMs: z.int().min(100).max(600_000).default(10_000).describe(
    "how long a parent may take to suspend, in milliseconds",
  ),
  reserveMib: z.int().min(0).max(1_048_576).default(64).describe("memory that shells must leave free in Xen, in MiB"),
}).describe("bounds of what this host does for guests");

const guests = z.strictObject({
  enabled: z.boolean().default(true).describe("serve the fork calls of guests at all"),
  requestsPerSecond: z.number().min(0.1).max(1000).default(10).describe("requests of one guest, in the long run"),
  burst: z.int().min(1).max(1000).default(20).describe("requests of one guest at once"),
}).describe("the fork calls that guests make through xenstore");

const memory = z.strictObject({
  fill: z.boolean().default(true).describe(
    "bring in the rest of a clone's memory in the background, so that it can outlive its parent",
  ),
}).describe("the memory of clones");

const peer = z.strictObject({
  name: hostName.describe("the peer's own `host`"),
  address: address.describe("where its agent listens"),
  port: port.default(7077).describe("TCP port of its agent"),
});

const cluster = z.strictObject({
  listen: z.strictObject({
    address: address.describe("this host's address for its peers"),
    port: port.default(7077).describe("TCP port"),
  }).optional().describe("where peers reach this agent; without it the host is on its own"),
  peers: z.array(peer).max(1024).default([]).describe("the other hosts"),
  certificate: path.optional().describe("this host's certificate, PEM"),
  key: path.optional().describe("the certificate's private key, PEM; readable by root alone"),
  heartbeatMs: z.int().min(50).max(10_000).default(1000).describe("time between signs of life, in milliseconds"),
  downAfterMs: z.int().min(200).max(600_000).default(5000).describe(
    "silence after which a peer counts as down, in milliseconds",
  ),
  authority: path.optional().describe("certificate of the authority that all hosts' certificates are of, PEM"),
  policy: z.union([
    z.enum(["pack", "spread", "slurm"]),
    z.strictObject({
      command: z.array(z.string().min(1)).min(1).max(64).describe("program and arguments; JSON on stdin and stdout"),
    }),
  ]).default("pack").describe("who places clones: pack, spread, slurm, or {command: [PROGRAM, ...]}"),
}).describe("other hosts");

const multicast = z.strictObject({
  mode: z.enum(["multicast", "unicast"]).default("multicast").describe(
    "unicast where the network carries no multicast",
  ),
  groups: z.array(group).min(1).max(64).default(["239.77.0.1"]).describe("groups that families are spread over"),
  port: port.default(7078).describe("UDP port"),
  timeToLive: z.int().min(1).max(255).default(1).describe("routers that multicast may cross"),
  maxRateMbps: z.int().min(1).max(400_000).default(10_000).describe(
    "most that this host sends, in megabits per second",
  ),
}).describe("the distribution of pages and blocks");

const egress = z.strictObject({
  to: z.cidrv4().describe("IPv4 network, 0.0.0.0/0 for all"),
  protocol: z.enum(["tcp", "udp", "icmp"]).optional().describe("any, if not given"),
  ports: z.tuple([port, port]).optional().describe("first and last port, of tcp or udp"),
});

const network = z.strictObject({
  enabled: z.boolean().default(false).describe("give each family a network of its own"),
  device: device.default("eth0").describe("the device that leads to the other hosts"),
  range: z.cidrv4().default("10.64.0.0/10").describe("what families' subnets are taken from"),
  group: group.optional().describe("multicast group of the VXLAN; without it, frames to all go to each peer"),
  vxlanPort: port.default(4789).describe("UDP port of the VXLAN"),
  egress: z.array(egress).max(256).default([]).describe("what members may reach outside; nothing by default"),
  deny: z.array(z.cidrv4()).max(256).default([]).describe("networks never to be reached, whatever is allowed"),
  dns: z.ipv4().optional().describe("name server for members"),
  mtu: z.int().min(1280).max(9000).default(1400).describe("MTU of members"),
}).describe("the virtual network of families");

const log = z.strictObject({
  level: z.enum(["debug", "info", "warning", "error"]).default("info").describe("least severe messages to log"),
}).describe("what is written to standard error, as lines of JSON");

export const Config = z.strictObject({
  host: hostName.optional().describe("this host's name in the cluster; by default its own"),
  socket: path.default("/run/snowflock/agent.sock").describe("the Unix socket of the API"),
  stateDirectory: path.default("/var/lib/snowflock").describe("journal, page copies, disk overlays"),
  limits: limits.prefault({}),
  guests: guests.prefault({}),
  memory: memory.prefault({}),
  cluster: cluster.prefault({}),
  multicast: multicast.prefault({}),
  network: network.prefault({}),
  log: log.prefault({}),
}).superRefine((config, context) => {
  const fail = (at: (string | number)[], message: string) => context.addIssue({ code: "custom", path: at, message });
  // sun_path holds 108 bytes with its NUL.
  if (new TextEncoder().encode(config.socket).length > 107) fail(["socket"], "must be at most 107 bytes");
  const { listen, peers, certificate, key, authority, heartbeatMs, downAfterMs } = config.cluster;
  if (downAfterMs < 2 * heartbeatMs) fail(["cluster", "downAfterMs"], "must be at least twice heartbeatMs");
  if (peers.length > 0 && listen === undefined) fail(["cluster", "listen"], "is needed with peers");
  if (listen !== undefined && (certificate === undefined || key === undefined || authority === undefined)) {
    fail(["cluster"], "certificate, key and authority are needed with listen");
  }
  const names = peers.map((other) => other.name);
  const twice = names.find((name, index) => names.indexOf(name) !== index);
  if (twice !== undefined) fail(["cluster", "peers"], `${twice} is there twice`);
  if (config.host !== undefined && names.includes(config.host)) fail(["cluster", "peers"], "this host is among them");
  config.network.egress.forEach(({ protocol, ports }, index) => {
    if (ports === undefined) return;
    if (protocol !== "tcp" && protocol !== "udp") fail(["network", "egress", index, "ports"], "need tcp or udp");
    if (ports[0] > ports[1]) fail(["network", "egress", index, "ports"], "must not fall");
  });
});

/** Settings with every default filled in. */
export type Config = z.infer<typeof Config>;
