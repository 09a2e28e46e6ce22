/**
 * The rules of one family on one host. In the family's own namespace: at the vifs and the overlay (netdev), between the
 * bridge's ports (bridge), at the gateway (inet). In the host's: who may speak VXLAN to the family, and what its gateway
 * may reach (inet). Each side is replaced as a whole, in one transaction.
 */
import { ipVersion } from "./addresses.ts";
import { memberChain, rejectionChain, type RejectPlace } from "./member_rules.ts";
import { type Chain, renderTable, type Table } from "./nft_text.ts";
import { BRIDGE, type NetworkNames, OVERLAY, UPLINK_INNER } from "./names.ts";
import type { FamilyPlan, MemberAddresses } from "./plan.ts";
import { egressOpen, type EgressRule, type Settings } from "./settings.ts";

/** A member that is on this host, and its vif. */
export interface LocalMember extends MemberAddresses {
  readonly device: string;
}

/** The uplink's two addresses, of a /31: the host's end and the family's. */
export interface UplinkAddresses {
  readonly host: string;
  readonly family: string;
}

const RATE = "family_rate";

/** Everything in the family's namespace. */
export function familyTables(
  plan: FamilyPlan,
  settings: Settings,
  members: readonly LocalMember[],
  rejects: RejectPlace,
): Table[] {
  const rate = settings.rateMbps === null ? null : RATE;
  return [{
    family: "netdev",
    name: "snowflock",
    // The kernel's bucket holds one second's worth.
    objects: settings.rateMbps === null ? [] : [`limit ${RATE} { rate over ${settings.rateMbps * 125} kbytes/second }`],
    chains: [
      overlayChain(plan, members),
      ...members.map((member) => memberChain(plan, member, member.device, rate, rejects)),
    ],
  }, {
    family: "bridge",
    name: "snowflock",
    chains: [...(rejects === "bridge" ? [rejectionChain()] : []), ...bridgeChains(plan)],
  }, {
    family: "inet",
    name: "snowflock",
    chains: gatewayChains(plan, settings),
  }];
}

export function renderFamily(tables: readonly Table[]): string {
  return `flush ruleset\n${tables.map(renderTable).join("")}`;
}

/** From other hosts: frames of the family, never in the name of a member that is here, of a gateway or a router. */
function overlayChain(plan: FamilyPlan, members: readonly LocalMember[]): Chain {
  const own = <K extends keyof MemberAddresses>(key: K, ...more: string[]) =>
    `{ ${[...members.map((member) => member[key]), ...more].join(", ")} }`;
  return {
    name: "overlay",
    hook: `type filter hook ingress device "${OVERLAY}" priority 0; policy drop;`,
    rules: [
      `ether type { 8021q, 8021ad } drop`,
      `ether saddr != ${plan.macPrefix}:00:00-${plan.macPrefix}:ff:fe drop`,
      `ether saddr ${own("mac", plan.gatewayMac)} drop`,
      `ether daddr ${plan.gatewayMac} drop`,
      `ether type arp arp saddr ether != ${plan.macPrefix}:00:00-${plan.macPrefix}:ff:fe drop`,
      `ether type arp arp saddr ip ${own("ip4", plan.gateway4)} drop`,
      `arp operation { request, reply } arp saddr ip ${plan.subnet4} accept`,
      "arp operation request arp saddr ip 0.0.0.0 accept",
      `ip saddr ${own("ip4", plan.gateway4)} drop`,
      "ether type ip udp sport 67 drop",
      `ip saddr ${plan.subnet4} accept`,
      `ether type ip6 icmpv6 type { nd-router-solicit, nd-router-advert, nd-redirect } drop`,
      `ip6 saddr ${own("ip6", plan.gateway6)} drop`,
      `ip6 saddr ${own("linkLocal6", plan.gatewayLinkLocal6)} drop`,
      `ip6 saddr { ${plan.prefix6}, fe80::/64, :: } accept`,
    ],
  };
}

/** Every host's gateway has the same addresses: what is meant for or comes from one stays on its host. */
function bridgeChains(plan: FamilyPlan): Chain[] {
  return [{
    name: "forwarded",
    hook: "type filter hook forward priority 0; policy accept;",
    rules: [
      `ether daddr ${plan.gatewayMac} drop`,
      `oifname "${OVERLAY}" arp daddr ip ${plan.gateway4} drop`,
      "ip daddr 255.255.255.255 udp dport 67 drop",
      "icmpv6 type nd-router-solicit drop",
      ...[plan.gateway6, plan.gatewayLinkLocal6].map((address) => `ip6 daddr ${address} drop`),
    ],
  }, {
    name: "from_gateway",
    hook: "type filter hook output priority 0; policy accept;",
    rules: [`oifname "${OVERLAY}" drop`],
  }, {
    name: "to_gateway",
    hook: "type filter hook input priority 0; policy accept;",
    rules: [`iifname "${OVERLAY}" drop`],
  }];
}

function gatewayChains(plan: FamilyPlan, settings: Settings): Chain[] {
  const members = `iifname "${BRIDGE}"`;
  const out = `${members} oifname "${UPLINK_INNER}" ip saddr ${plan.subnet4}`;
  const { allow, deny, dns } = settings.egress;
  const open = egressOpen(settings);
  return [{
    name: "to_gateway",
    hook: "type filter hook input priority 0; policy drop;",
    rules: [
      "ct state established,related accept",
      `${members} ip daddr ${plan.gateway4} icmp type echo-request limit rate 200/second accept`,
      `${members} icmpv6 type { echo-request, nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit } ` +
      "limit rate 1000/second burst 1000 packets accept",
      `${members} udp dport 67 limit rate 200/second burst 200 packets accept`,
      `${members} meta l4proto tcp limit rate 200/second reject with tcp reset`,
    ],
  }, {
    name: "routed",
    hook: "type filter hook forward priority 0; policy drop;",
    rules: [
      ...(open
        ? [
          "ct state established,related accept",
          ...deny.map((network) => `${members} ip daddr ${network} reject with icmp type admin-prohibited`),
          ...(dns === null ? [] : [`${out} ip daddr ${dns} meta l4proto { tcp, udp } th dport 53 accept`]),
          ...allow.map((rule) => `${out} ${egressMatch(rule)} accept`),
        ]
        : []),
      // Frames from port to port, where a module (br_netfilter, loaded later) shows them to these rules too.
      `${members} oifname "${BRIDGE}" ip daddr ${plan.subnet4} accept`,
      `${members} oifname "${BRIDGE}" ip6 daddr { ${plan.prefix6}, fe80::/64, ff00::/8 } accept`,
      // So that a program learns at once that the way is closed.
      `${members} meta l4proto tcp limit rate 200/second reject with tcp reset`,
      `${members} limit rate 200/second reject with icmpx type admin-prohibited`,
    ],
  }, {
    name: "translated",
    hook: "type nat hook postrouting priority srcnat; policy accept;",
    rules: open ? [`oifname "${UPLINK_INNER}" masquerade`] : [],
  }];
}

function egressMatch({ to, protocol, ports }: EgressRule): string {
  const parts = [`ip daddr ${to}`];
  if (protocol !== undefined) {
    parts.push(ports === undefined ? `meta l4proto ${protocol}` : `${protocol} dport ${ports[0]}-${ports[1]}`);
  }
  return parts.join(" ");
}

/** The family's table in the host's namespace. `uplink` is null where egress is closed. */
export function hostTable(
  plan: FamilyPlan,
  settings: Settings,
  names: NetworkNames,
  uplink: UplinkAddresses | null,
): Table {
  const { device, port, address } = settings.underlay;
  const source = ipVersion(address) === 4 ? "ip saddr" : "ip6 saddr";
  const ours = `iifname "${names.uplink}"`;
  return {
    family: "inet",
    name: names.hostTable,
    chains: [{
      name: "overlay",
      rules: [
        `iifname != "${device}" drop`,
        settings.peers.length === 0 ? "drop" : `${source} != { ${settings.peers.join(", ")} } drop`,
        ...(settings.sealed ? ["meta secpath missing drop"] : []),
      ],
    }, {
      name: "to_host",
      hook: "type filter hook input priority -10; policy accept;",
      rules: [
        // The VXLAN id, 12 bytes into the UDP datagram (RFC 7348, section 5).
        `udp dport ${port} @th,96,24 0x${plan.family.vni.toString(16)} jump overlay`,
        ...(uplink === null ? [] : [`${ours} meta l4proto icmp ct state established,related accept`, `${ours} drop`]),
      ],
    }, {
      name: "routed",
      hook: "type filter hook forward priority -10; policy accept;",
      rules: uplink === null ? [] : [
        `${ours} meta nfproto != ipv4 drop`,
        `${ours} ip saddr != ${uplink.family} drop`,
        `${ours} oifname "${names.uplinkPrefix}*" drop`,
        // Never through a member's door into the overlay of any family.
        `${ours} udp dport ${port} drop`,
        `oifname "${names.uplink}" ct state != { established, related } drop`,
      ],
    }, {
      name: "translated",
      hook: "type nat hook postrouting priority srcnat; policy accept;",
      rules: uplink === null ? [] : [`ip saddr ${uplink.family} oifname != "${names.uplink}" masquerade`],
    }],
  };
}

export function renderHost(table: Table): string {
  const name = `${table.family} ${table.name}`;
  return `add table ${name}\ndelete table ${name}\n${renderTable(table)}`;
}
