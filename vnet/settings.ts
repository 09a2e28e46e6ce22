/** What a family's network is to be on one host, and the checks of it. Kept beside the network, so that a restarted agent finds it. */
import { AddressError, ipVersion, parseIp4, parseNetwork4 } from "./addresses.ts";
import { isObject } from "./commands.ts";

/** The network between the hosts. */
export interface Underlay {
  /** The device that peers' packets arrive on: "eth0", "xenbr0". */
  readonly device: string;
  /** This host's own address on it, IPv4 or IPv6. */
  readonly address: string;
  /** Multicast group for frames to all; without one they are sent to each peer (head-end replication). */
  readonly group?: string;
  /** UDP port of VXLAN; 4789 (RFC 7348) by default. */
  readonly port?: number;
}

/** One kind of connection that members may open to the outside. */
export interface EgressRule {
  /** IPv4 network: "0.0.0.0/0". */
  readonly to: string;
  /** Any, if not given. */
  readonly protocol?: "tcp" | "udp" | "icmp";
  /** First and last destination port; of tcp and udp only. */
  readonly ports?: readonly [number, number];
}

/** IPv4 only: families' IPv6 addresses are not routed beyond their segment. */
export interface Egress {
  /** Nothing goes out that no rule allows. */
  readonly allow: readonly EgressRule[];
  /** Networks never to be reached, whatever is allowed. */
  readonly deny?: readonly string[];
  /** Name server told to members by DHCP, and allowed at port 53. */
  readonly dns?: string;
}

export interface NetworkOptions {
  readonly underlay: Underlay;
  /** Underlay addresses of the other hosts of the family: VXLAN packets of nobody else are accepted. */
  readonly peers: readonly string[];
  /** Accept only packets that came by IPsec (`seal.ts`), so that no stranger can use a peer's address. Default false. */
  readonly sealed?: boolean;
  /** Closed by default. */
  readonly egress?: Egress;
  /** Bound on what all members of this host together send, in megabits per second; none by default. */
  readonly rateMbps?: number;
  /** Answer DHCP and router solicitations (by dnsmasq). Default true. */
  readonly dhcp?: boolean;
  /** MTU of the members; {@link DEFAULT_MTU} by default. */
  readonly mtu?: number;
}

/** {@link NetworkOptions} with every default filled in, checked. */
export interface Settings {
  readonly underlay: Required<Omit<Underlay, "group">> & { readonly group: string | null };
  readonly peers: readonly string[];
  readonly sealed: boolean;
  readonly egress: {
    readonly allow: readonly EgressRule[];
    readonly deny: readonly string[];
    readonly dns: string | null;
  };
  readonly rateMbps: number | null;
  readonly dhcp: boolean;
  readonly mtu: number;
}

/** Options that cannot be carried out; nothing was changed. */
export class SettingsError extends Error {
  override readonly name = "SettingsError";
}

/** Room for VXLAN over IPv6 (70 bytes) and IPsec (38) on an underlay of 1500. */
export const DEFAULT_MTU = 1380;

const MAX_PEERS = 1024;
const MAX_EGRESS_RULES = 256;
/** Linux: IFNAMSIZ less the final zero; no slash, no space. Also safe between the quotes of a rule. */
const DEVICE = /^[A-Za-z0-9][A-Za-z0-9._-]{0,14}$/;

/** @throws SettingsError if it cannot be the name of a network device. */
export function checkDevice(name: unknown): string {
  if (typeof name !== "string" || !DEVICE.test(name)) throw new SettingsError(`${String(name)} is no name of a device`);
  return name;
}

/** @throws SettingsError naming the field. */
export function settingsOf(options: NetworkOptions): Settings {
  return checkSettings({
    ...options,
    underlay: { ...options.underlay, port: options.underlay.port ?? 4789, group: options.underlay.group ?? null },
    sealed: options.sealed ?? false,
    egress: {
      allow: options.egress?.allow ?? [],
      deny: options.egress?.deny ?? [],
      dns: options.egress?.dns ?? null,
    },
    rateMbps: options.rateMbps ?? null,
    dhcp: options.dhcp ?? true,
    mtu: options.mtu ?? DEFAULT_MTU,
  });
}

/** Checks settings that were read from outside. @throws SettingsError naming the field. */
export function checkSettings(value: unknown): Settings {
  if (!isObject(value)) throw new SettingsError("settings are no object");
  const underlay = isObject(value.underlay) ? value.underlay : {};
  const egress = isObject(value.egress) ? value.egress : {};
  const address = addressOf("underlay.address", underlay.address);
  const version = ipVersion(address);
  const peers = listOf("peers", value.peers, MAX_PEERS, (peer) => {
    const text = addressOf("peers", peer);
    if (ipVersion(text) !== version) throw new SettingsError(`peer ${text} is not of the IP version of ${address}`);
    if (text === address) throw new SettingsError(`peer ${text} is this host itself`);
    return text;
  });
  return {
    underlay: {
      device: checkDevice(underlay.device),
      address,
      port: integerOf("underlay.port", underlay.port, 1, 65535),
      group: underlay.group === null ? null : groupOf(underlay.group, version),
    },
    peers: [...new Set(peers)].sort(),
    sealed: booleanOf("sealed", value.sealed),
    egress: {
      allow: listOf("egress.allow", egress.allow, MAX_EGRESS_RULES, egressRule),
      deny: listOf("egress.deny", egress.deny, MAX_EGRESS_RULES, (network) => networkOf("egress.deny", network)),
      dns: egress.dns === null ? null : networkOf("egress.dns", `${egress.dns}/32`).slice(0, -3),
    },
    rateMbps: value.rateMbps === null ? null : integerOf("rateMbps", value.rateMbps, 1, 1_000_000),
    dhcp: booleanOf("dhcp", value.dhcp),
    // 1280: the least that IPv6 runs on (RFC 8200).
    mtu: integerOf("mtu", value.mtu, 1280, 9000),
  };
}

/** Whether anything may leave at all. */
export function egressOpen(settings: Settings): boolean {
  return settings.egress.allow.length > 0 || settings.egress.dns !== null;
}

function egressRule(value: unknown): EgressRule {
  if (!isObject(value)) throw new SettingsError("egress.allow holds something that is no rule");
  const { protocol, ports } = value;
  const to = networkOf("egress.allow.to", value.to);
  if (protocol === undefined && ports === undefined) return { to };
  if (protocol !== "tcp" && protocol !== "udp" && protocol !== "icmp") {
    throw new SettingsError(`egress protocol ${String(protocol)} is not tcp, udp or icmp`);
  }
  if (ports === undefined) return { to, protocol };
  if (protocol === "icmp" || !Array.isArray(ports) || ports.length !== 2) {
    throw new SettingsError("egress ports are the first and the last port, of tcp or udp");
  }
  const first = integerOf("egress.allow.ports", ports[0], 1, 65535);
  return { to, protocol, ports: [first, integerOf("egress.allow.ports", ports[1], first, 65535)] };
}

function listOf<T>(name: string, value: unknown, most: number, check: (item: unknown) => T): T[] {
  if (!Array.isArray(value)) throw new SettingsError(`${name} is no list`);
  if (value.length > most) throw new SettingsError(`${name} has ${value.length} entries, over ${most}`);
  return value.map((item) => check(item));
}

function integerOf(name: string, value: unknown, least: number, most: number): number {
  if (typeof value !== "number" || !Number.isInteger(value) || value < least || value > most) {
    throw new SettingsError(`${name} ${String(value)} is no whole number from ${least} to ${most}`);
  }
  return value;
}

function booleanOf(name: string, value: unknown): boolean {
  if (typeof value !== "boolean") throw new SettingsError(`${name} is neither true nor false`);
  return value;
}

function checked<T>(name: string, check: () => T): T {
  try {
    return check();
  } catch (error) {
    if (error instanceof AddressError) throw new SettingsError(`${name}: ${error.message}`, { cause: error });
    throw error;
  }
}

function addressOf(name: string, value: unknown): string {
  checked(name, () => ipVersion(String(value)));
  return String(value).toLowerCase();
}

function networkOf(name: string, value: unknown): string {
  checked(name, () => parseNetwork4(String(value)));
  return String(value);
}

function groupOf(value: unknown, version: 4 | 6): string {
  const text = addressOf("underlay.group", value);
  const multicast = version === ipVersion(text) && (version === 6 ? /^ff/.test(text) : parseIp4(text) >>> 28 === 14);
  if (!multicast) {
    throw new SettingsError(`underlay.group ${text} is no multicast address of the underlay's IP version`);
  }
  return text;
}
