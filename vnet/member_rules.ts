/**
 * What one member may send: the chain at the ingress of its vif, before the bridge sees (and learns from) the frame.
 * Everything that is not let in is dropped; addresses are the member's own or the frame goes no further.
 *
 * **Inherited connections.** A clone wakes with its parent's sockets, bound to the parent's address. Their packets must
 * not leave, and must not vanish either: the program would hang until TCP gives up. So TCP from an address that is not
 * the member's is answered with a reset, other IP with "port unreachable", to the member itself. A clone first has to
 * find the MAC of its next hop, and asks for it in the parent's name; such a request is corrected, not dropped: it goes
 * out with the member's own address, true for everyone who hears it, and the answer comes back to the member.
 *
 * Kernels differ in where they can reject a frame ({@link RejectPlace}). Where only the bridge can, its first hook does it
 * for packets that this chain has marked; the bridge has learned nothing from them by then.
 */
import { parseIp6 } from "./addresses.ts";
import type { Chain } from "./nft_text.ts";
import type { FamilyPlan, MemberAddresses } from "./plan.ts";

/** Rejections a second and member: enough for any number of inherited sockets, too few to load the host. */
const REJECTS = "limit rate 500/second burst 500 packets";
/** Frames to all or to groups, a second and member: they cost every host of the family. */
const FLOODS = "limit rate over 1000/second burst 1000 packets";

const BLOCKED = 'counter drop comment "blocked"';
/** Offsets below are in bits from the ICMPv6 header (RFC 4861, 4.3 and 4.4): target at 64, first option at 192. */
const TARGET = "@th,64,128";

/** Where the kernel can answer a frame with a rejection: at a device, on a bridge, or nowhere (then it is dropped). */
export type RejectPlace = "netdev" | "bridge" | "none";

/** On packets that {@link rejectionChain} is to reject. */
const MARK = "0x5f0e7ec7";

/** Most of what is rejected is TCP; a UDP socket learns of its peer's absence too. */
const REJECTIONS = [
  `meta l4proto tcp ${REJECTS} reject with tcp reset`,
  `${REJECTS} reject with icmpx type port-unreachable`,
];

/** The rejections of all members, on the bridge. */
export function rejectionChain(): Chain {
  return {
    name: "inherited",
    hook: "type filter hook prerouting priority -300; policy accept;",
    rules: [...REJECTIONS.map((rule) => `meta mark ${MARK} ${rule}`), `meta mark ${MARK} drop`],
  };
}

/** What becomes of packets of `etherType` from addresses that are not the member's. */
function foreign(etherType: "ip" | "ip6", place: RejectPlace): string[] {
  const match = `ether type ${etherType}`;
  const count = 'counter comment "blocked"';
  if (place === "none") return [`${match} ${BLOCKED}`];
  if (place === "bridge") return [`${match} counter meta mark set ${MARK} accept comment "blocked"`];
  return [`${match} ${count}`, ...REJECTIONS.map((rule) => `${match} ${rule}`), `${match} drop`];
}

export function memberChainName(cloneId: number): string {
  return `member_${cloneId}`;
}

/** `rateLimit` is the name of the limit that all members of the host share. */
export function memberChain(
  plan: FamilyPlan,
  member: MemberAddresses,
  device: string,
  rateLimit: string | null,
  rejects: RejectPlace,
): Chain {
  const { mac } = member;
  return {
    name: memberChainName(member.cloneId),
    hook: `type filter hook ingress device "${device}" priority 0; policy drop;`,
    rules: [
      `ether saddr != ${mac} ${BLOCKED}`,
      ...(rateLimit === null ? [] : [`limit name "${rateLimit}" drop`]),
      // A tag would carry a frame past the checks below: their protocol is that of the frame within.
      `ether type { 8021q, 8021ad } ${BLOCKED}`,
      `ether daddr & 01:00:00:00:00:00 == 01:00:00:00:00:00 ${FLOODS} drop`,
      ...arpRules(plan, member),
      ...ip4Rules(member, rejects),
      ...ip6Rules(plan, member, rejects),
      BLOCKED,
    ],
  };
}

function arpRules(plan: FamilyPlan, { mac, ip4 }: MemberAddresses): string[] {
  return [
    `ether type arp arp saddr ether != ${mac} ${BLOCKED}`,
    `arp operation { request, reply } arp saddr ip ${ip4} accept`,
    // RFC 5227: a probe for an address, allowed for the member's own only, or it could keep another from taking its.
    `arp operation request arp saddr ip 0.0.0.0 arp daddr ip ${ip4} accept`,
    `arp operation request arp saddr ip ${plan.subnet4} arp saddr ip != ${plan.gateway4} arp saddr ip set ${ip4} accept`,
    `ether type arp ${BLOCKED}`,
  ];
}

function ip4Rules({ ip4 }: MemberAddresses, rejects: RejectPlace): string[] {
  return [
    "ip saddr 0.0.0.0 ip daddr 255.255.255.255 udp sport 68 udp dport 67 accept",
    `ether type ip udp sport 67 ${BLOCKED}`,
    `ip saddr ${ip4} accept`,
    ...foreign("ip", rejects),
  ];
}

function ip6Rules(plan: FamilyPlan, { mac, ip6, linkLocal6 }: MemberAddresses, rejects: RejectPlace): string[] {
  const own = `ip6 saddr { ${ip6}, ${linkLocal6} }`;
  const target = (address: string) => `${TARGET} 0x${parseIp6(address).toString(16).padStart(32, "0")}`;
  /** The message ends with one option of this kind that holds the member's own MAC, so none can hold another's. */
  const option = (kind: 1 | 2) => `ip6 length 32 @th,192,16 0x0${kind}01 @th,208,48 0x${mac.replaceAll(":", "")}`;
  const solicit = "ip6 nexthdr icmpv6 icmpv6 type nd-neighbor-solicit";
  const advertise = "ip6 nexthdr icmpv6 icmpv6 type nd-neighbor-advert";
  return [
    // RFC 6980: no neighbour message in pieces, which could hide what it says.
    `ether type ip6 exthdr frag exists meta l4proto icmpv6 ${BLOCKED}`,
    `${solicit} ip6 saddr :: ${target(ip6)} accept`,
    `${solicit} ip6 saddr :: ${target(linkLocal6)} accept`,
    `${solicit} ${own} ip6 length 24 accept`,
    `${solicit} ${own} ${option(1)} accept`,
    `${solicit} ip6 saddr ${plan.prefix6} ip6 saddr != ${plan.gateway6} ${option(1)} ip6 saddr set ${ip6} accept`,
    `${solicit} ip6 saddr fe80::/64 ip6 saddr != ${plan.gatewayLinkLocal6} ${
      option(1)
    } ip6 saddr set ${linkLocal6} accept`,
    ...[ip6, linkLocal6].flatMap((address) => [
      `${advertise} ${own} ${target(address)} ip6 length 24 accept`,
      `${advertise} ${own} ${target(address)} ${option(2)} accept`,
    ]),
    // To the gateway's daemon only (ruleset.ts), which may learn the member's own MAC from it.
    `ip6 nexthdr icmpv6 icmpv6 type nd-router-solicit ip6 saddr ${linkLocal6} ip6 length 16 @th,64,16 0x0101 ` +
    `@th,80,48 0x${mac.replaceAll(":", "")} accept`,
    "ip6 nexthdr icmpv6 icmpv6 type nd-router-solicit ip6 saddr :: ip6 length 8 accept",
    `ether type ip6 icmpv6 type { nd-router-solicit, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert, nd-redirect } ${BLOCKED}`,
    // RFC 3810, 5.2.13: listener reports before the first address is up.
    "ip6 saddr :: ip6 daddr ff02::16 icmpv6 type mld2-listener-report accept",
    `ether type ip6 udp sport 547 ${BLOCKED}`,
    `${own} accept`,
    ...foreign("ip6", rejects),
  ];
}
