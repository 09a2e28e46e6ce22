/**
 * A family's segment on this host: a network namespace that holds a bridge, the VXLAN device to the other hosts, and the
 * members' vifs. The kernel is the record of it: the bridge's alias says whose it is, a vif's alias which member's.
 */
import {
  batch,
  command,
  CommandError,
  type CommandRunner,
  type JsonObject,
  objectOf,
  parseJsonList,
  readJson,
  textOf,
} from "./commands.ts";
import { BRIDGE, type NetworkNames, OVERLAY } from "./names.ts";
import type { FamilyPlan, MemberAddresses } from "./plan.ts";
import type { RejectPlace } from "./member_rules.ts";
import type { LocalMember } from "./ruleset.ts";
import type { Settings } from "./settings.ts";

/** A device in the family's namespace. */
export interface Link {
  readonly device: string;
  readonly alias: string;
  readonly up: boolean;
  readonly bridged: boolean;
  readonly mtu: number;
  /** The VXLAN id, of the overlay device. */
  readonly vni: number | null;
}

export interface SegmentState {
  /** Whose it is; null for one that was never finished. */
  readonly familyId: string | null;
  readonly links: readonly Link[];
}

const BRIDGE_ALIAS = "snowflock:";
const MEMBER_ALIAS = "member:";
const ALL_MACS = "00:00:00:00:00:00";

/** Settings of a fresh namespace. With `?`: only where the kernel has it. */
const SYSCTLS = [
  "net/ipv6/conf/default/disable_ipv6=1",
  "net/ipv6/conf/default/accept_ra=0",
  "net/ipv6/conf/default/accept_dad=0",
  "net/ipv4/conf/all/arp_ignore=1",
  "net/ipv4/conf/all/arp_announce=2",
  "net/ipv4/conf/all/rp_filter=1",
  "net/ipv4/conf/all/accept_redirects=0",
  "net/ipv4/conf/default/accept_redirects=0",
  "net/ipv4/conf/all/send_redirects=0",
  "net/ipv4/conf/default/send_redirects=0",
  "net/ipv4/ip_forward=1",
  // Bridged frames are judged by the bridge's own rules; the gateway's rules would drop them.
  "?net/bridge/bridge-nf-call-iptables=0",
  "?net/bridge/bridge-nf-call-ip6tables=0",
  "?net/bridge/bridge-nf-call-arptables=0",
];

/** Writes kernel settings, `path=value` below /proc/sys. */
export async function writeSysctls(
  runner: CommandRunner,
  settings: readonly string[],
  namespace?: string,
): Promise<void> {
  const script = 'for s in "$@"; do p="/proc/sys/${s%%=*}"; case "$s" in "?"*) p="/proc/sys/${p#/proc/sys/?}"; ' +
    '[ -e "$p" ] || continue;; esac; echo "${s#*=}" > "$p" || exit 1; done';
  const options = namespace === undefined ? {} : { namespace };
  await command(runner, "set up the kernel's network settings", ["sh", "-c", script, "sh", ...settings], options);
}

/** Names of all network namespaces. */
export async function listNamespaces(runner: CommandRunner): Promise<string[]> {
  const listed = await readJson(runner, "list network namespaces", ["ip", "-json", "netns", "list"]);
  return listed.flatMap((item) => textOf(item, "name") ?? []);
}

/** What is in the namespace; null where its name no longer leads to one (a mount that died with its process). */
export async function readSegment(runner: CommandRunner, names: NetworkNames): Promise<SegmentState | null> {
  const argv = ["ip", "-json", "-details", "link", "show"];
  const result = await runner.run(argv, { namespace: names.namespace });
  if (result.status !== 0) {
    if (/^nsenter: /.test(result.stderr)) return null;
    throw new CommandError(`read ${names.namespace}`, argv, result);
  }
  const links = parseJsonList(`read ${names.namespace}`, argv, result.stdout).flatMap(linkOf);
  const alias = links.find(({ device }) => device === BRIDGE)?.alias ?? "";
  return { familyId: alias.startsWith(BRIDGE_ALIAS) ? alias.slice(BRIDGE_ALIAS.length) : null, links };
}

function linkOf(item: JsonObject): Link[] {
  const device = textOf(item, "ifname");
  const info = objectOf(item, "linkinfo");
  if (device === undefined) return [];
  const { id } = objectOf(info, "info_data");
  return [{
    device,
    alias: textOf(item, "ifalias") ?? "",
    up: Array.isArray(item.flags) && item.flags.includes("UP"),
    bridged: item.master === BRIDGE,
    mtu: typeof item.mtu === "number" ? item.mtu : 0,
    vni: textOf(info, "info_kind") === "vxlan" && typeof id === "number" ? id : null,
  }];
}

/** The clone id that a vif's alias names. */
export function cloneIdOfLink(link: Link): number | undefined {
  const match = /^member:(\d{1,5})$/.exec(link.alias);
  return match === null ? undefined : Number(match[1]);
}

/** Makes namespace, bridge and overlay; nothing is up yet. */
export async function buildSegment(
  runner: CommandRunner,
  names: NetworkNames,
  plan: FamilyPlan,
  settings: Settings,
): Promise<void> {
  const { namespace } = names;
  const what = `build the network of family ${plan.family.id}`;
  await command(runner, what, ["ip", "netns", "add", namespace]);
  await writeSysctls(runner, SYSCTLS, namespace);
  await batch(runner, what, "ip", [
    "link set dev lo up",
    `link add ${BRIDGE} address ${plan.gatewayMac} type bridge stp_state 0 mcast_snooping 0`,
    `addr add ${plan.gateway4}/${plan.prefixLength4} dev ${BRIDGE}`,
  ], namespace);
  await writeSysctls(runner, [`net/ipv6/conf/${BRIDGE}/disable_ipv6=0`], namespace);
  await batch(runner, what, "ip", [`addr add ${plan.gateway6}/64 dev ${BRIDGE} nodad`], namespace);
  await addOverlay(runner, names, plan, settings);
}

/** The alias of an overlay device that was made of these settings. */
export function overlayAlias({ underlay }: Settings): string {
  return `underlay:${[underlay.device, underlay.address, underlay.port, underlay.group ?? "peers"].join(",")}`;
}

/** Made in the host's namespace and put into the family's: its packets travel the host's network, its frames the family's. */
export async function addOverlay(
  runner: CommandRunner,
  names: NetworkNames,
  plan: FamilyPlan,
  settings: Settings,
): Promise<void> {
  const { device, address, port, group } = settings.underlay;
  const what = `build the overlay of family ${plan.family.id}`;
  await batch(runner, what, "ip", [
    `link add ${OVERLAY} netns ${names.namespace} type vxlan id ${plan.family.vni} local ${address} dev ${device} ` +
    `dstport ${port}${group === null ? "" : ` group ${group} ttl 8`}`,
  ]);
  await batch(runner, what, "ip", [
    `link set dev ${OVERLAY} alias ${overlayAlias(settings)}`,
    `link set dev ${OVERLAY} master ${BRIDGE}`,
  ], names.namespace);
}

/** Sets MTUs, brings up bridge and overlay, and marks the segment as finished. To be called with its rules in force. */
export async function raiseSegment(
  runner: CommandRunner,
  names: NetworkNames,
  plan: FamilyPlan,
  settings: Settings,
  members: readonly LocalMember[],
): Promise<void> {
  const ports = [OVERLAY, ...members.map(({ device }) => device)];
  await batch(runner, `bring up the network of family ${plan.family.id}`, "ip", [
    ...[...ports, BRIDGE].map((device) => `link set dev ${device} mtu ${settings.mtu}`),
    ...[BRIDGE, ...ports].map((device) => `link set dev ${device} up`),
    // So that what wants to go out is refused by a rule, with a reset, where there is no other way out.
    `route replace default dev ${BRIDGE} metric 1000`,
    `link set dev ${BRIDGE} alias ${BRIDGE_ALIAS}${plan.family.id}`,
  ], names.namespace);
}

/** Sends frames for all to exactly these hosts, and forgets what was learned of others. */
export async function setPeers(runner: CommandRunner, names: NetworkNames, settings: Settings): Promise<void> {
  const argv = ["bridge", "-json", "fdb", "show", "dev", OVERLAY];
  const flooded = new Set<string>();
  const lines: string[] = [];
  const wanted = settings.underlay.group === null ? settings.peers : [];
  for (const entry of await readJson(runner, "read the overlay's peers", argv, names.namespace)) {
    const mac = textOf(entry, "mac");
    const peer = textOf(entry, "dst");
    if (mac === undefined || peer === undefined || peer === settings.underlay.group) continue;
    if (mac === ALL_MACS ? !wanted.includes(peer) : !settings.peers.includes(peer)) {
      lines.push(`fdb del ${mac} dev ${OVERLAY} dst ${peer}`);
    } else if (mac === ALL_MACS) flooded.add(peer);
  }
  for (const peer of wanted) if (!flooded.has(peer)) lines.push(`fdb append ${ALL_MACS} dev ${OVERLAY} dst ${peer}`);
  await batch(runner, "set the overlay's peers", "bridge", lines, names.namespace);
}

/** A vif to be made a member's, and how it stands in the family's namespace, if it is there. */
export interface Adoption {
  readonly member: LocalMember;
  readonly link: Link | undefined;
}

/**
 * Brings vifs from the host's namespace and makes each a port that only its member's MAC is behind. One that is a port
 * already is not interrupted.
 */
export async function adoptVifs(
  runner: CommandRunner,
  names: NetworkNames,
  adoptions: readonly Adoption[],
): Promise<void> {
  const what = `attach ${adoptions.map(({ member }) => member.device).join(", ")} to ${names.namespace}`;
  await batch(
    runner,
    what,
    "ip",
    adoptions.flatMap(({ member: { device }, link }) =>
      link !== undefined ? [] : [`link set dev ${device} down`, `link set dev ${device} netns ${names.namespace}`]
    ),
  );
  await batch(
    runner,
    what,
    "ip",
    adoptions.flatMap(({ member: { device, cloneId }, link }) =>
      link?.bridged ? [] : [
        `link set dev ${device} down`,
        `link set dev ${device} alias ${MEMBER_ALIAS}${cloneId}`,
        `link set dev ${device} master ${BRIDGE}`,
      ]
    ),
    names.namespace,
  );
  await batch(
    runner,
    what,
    "bridge",
    adoptions.flatMap(({ member: { device, mac } }) => [
      `link set dev ${device} learning off guard on`,
      `fdb replace ${mac} dev ${device} master static`,
    ]),
    names.namespace,
  );
}

/** Gives a vif back to the host's namespace as it came: down, unmarked, of the MTU that netback makes it with. */
export async function releaseVif(runner: CommandRunner, names: NetworkNames, device: string): Promise<void> {
  const what = `give ${device} back to the host`;
  const { namespace } = names;
  await batch(runner, what, "ip", [
    `link set dev ${device} down`,
    `link set dev ${device} nomaster`,
    `link set dev ${device} mtu 1500`,
  ], namespace);
  await command(runner, what, ["ip", "link", "set", "dev", device, "alias", ""], { namespace });
  // The shell stays in the host's namespace while its child enters the family's: $$ names the host's.
  const script = 'ip -n "$1" link set dev "$2" netns $$; status=$?; exit $status';
  await command(runner, what, ["sh", "-c", script, "sh", namespace, device]);
}

/** The gateway knows its members' addresses and asks nobody: no reply can turn their packets elsewhere. */
export async function setNeighbours(
  runner: CommandRunner,
  names: NetworkNames,
  members: readonly MemberAddresses[],
): Promise<void> {
  const wanted = new Map(
    members.flatMap(({ mac, ip4, ip6, linkLocal6 }) =>
      [ip4, ip6, linkLocal6].map((address): [string, string] => [address, mac])
    ),
  );
  const argv = ["ip", "-json", "neigh", "show", "dev", BRIDGE, "nud", "permanent"];
  const lines: string[] = [];
  for (const entry of await readJson(runner, "read the gateway's neighbours", argv, names.namespace)) {
    const address = textOf(entry, "dst") ?? "";
    if (wanted.get(address) === textOf(entry, "lladdr")) wanted.delete(address);
    else if (!wanted.has(address)) lines.push(`neigh del ${address} dev ${BRIDGE}`);
  }
  for (const [address, mac] of wanted) lines.push(`neigh replace ${address} lladdr ${mac} dev ${BRIDGE} nud permanent`);
  await batch(runner, "set the gateway's neighbours", "ip", lines, names.namespace);
}

/** Removes the overlay at once: while a namespace dies at its leisure, the device would keep its id from being used again. */
export async function removeOverlay(runner: CommandRunner, names: NetworkNames): Promise<void> {
  const argv = ["ip", "link", "del", "dev", OVERLAY];
  const result = await runner.run(argv, { namespace: names.namespace });
  if (result.status !== 0 && !/Cannot find device/.test(result.stderr)) {
    throw new CommandError(`remove the overlay of ${names.namespace}`, argv, result);
  }
}

/** Where this kernel can reject: asked of it with rules that are checked and not kept, in the family's namespace. */
export async function findRejectPlace(runner: CommandRunner, names: NetworkNames): Promise<RejectPlace> {
  const probes = {
    bridge: "hook prerouting",
    netdev: `hook ingress device "${OVERLAY}"`,
  };
  for (const place of ["bridge", "netdev"] as const) {
    const chain = `type filter ${probes[place]} priority 0; meta l4proto tcp reject with tcp reset;`;
    const input = `table ${place} probe {\n chain probe {\n ${chain}\n }\n}\n`;
    const { status } = await runner.run(["nft", "-c", "-f", "-"], { input, namespace: names.namespace });
    if (status === 0) return place;
  }
  return "none";
}
