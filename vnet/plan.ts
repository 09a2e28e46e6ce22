/**
 * The address plan: what a family and its members are called on the wire. Pure, and the same on every host and in every
 * guest, so that any member can compute any other's addresses.
 *
 *     MAC   = first octet | VXLAN id (24 bits) | clone id (16 bits)
 *     IPv4  = first usable address of the subnet + clone id
 *     IPv6  = fleet prefix (/40) | VXLAN id (24 bits) | interface id of the MAC (EUI-64, so that SLAAC gives the same)
 *
 * Two families of a fleet never hold the same VXLAN id (`registry.ts`), and the id is part of MAC and IPv6: neither can
 * collide. IPv4 subnets are the same in every family on purpose; families share no segment and no routing table.
 */
import {
  AddressError,
  formatIp4,
  formatIp6,
  formatMac,
  formatNetwork4,
  formatNetwork6,
  interfaceId,
  type Network4,
  type Network6,
  parseIp4,
  parseIp6,
  parseMac,
  parseNetwork4,
  parseNetwork6,
} from "./addresses.ts";

/** VXLAN ids, both ends included. RFC 7348: 24 bits; 0 is left alone. */
export interface VniRange {
  readonly first: number;
  readonly last: number;
}

/** What the fleet's configuration sets aside for families. The same on every host. */
export interface FleetRanges {
  readonly vni: VniRange;
  /** First octet of all MACs: locally administered, unicast (its low bits are `10`). */
  readonly macFirstOctet: number;
  /** Subnet of every family, /8 to /29: "10.83.0.0/16". */
  readonly subnet4: string;
  /** A /40 of unique local addresses (RFC 4193): "fd53:4e4f:5700::/40". */
  readonly prefix6: string;
}

export const DEFAULT_RANGES: FleetRanges = {
  vni: { first: 0x5f0000, last: 0x5fffff },
  macFirstOctet: 0x5a,
  subnet4: "10.83.0.0/16",
  prefix6: "fd53:4e4f:5700::/40",
};

/** A parent and its descendants. */
export interface Family {
  /** UUID, lower case. */
  readonly id: string;
  /** The VXLAN id that the family holds in the fleet's registry. */
  readonly vni: number;
}

export interface FamilyPlan {
  readonly family: Family;
  /** The first four octets of every member's MAC. */
  readonly macPrefix: string;
  readonly subnet4: string;
  readonly prefixLength4: number;
  /** The subnet's last usable address; every host answers to it, for its own members. */
  readonly gateway4: string;
  readonly prefix6: string;
  readonly gateway6: string;
  readonly gatewayLinkLocal6: string;
  readonly gatewayMac: string;
  /** Clone ids are 0 (the parent) to `capacity - 1`. */
  readonly capacity: number;
}

export interface MemberAddresses {
  readonly cloneId: number;
  readonly mac: string;
  readonly ip4: string;
  readonly ip6: string;
  readonly linkLocal6: string;
}

/** The last two octets of the gateway's MAC: no clone has this id. */
const GATEWAY_ID = 0xffff;
const MAX_VNI = 0xffffff;
const LINK_LOCAL = parseIp6("fe80::");

/** A clone id or VXLAN id beyond what the fleet's ranges hold. */
export class PlanRangeError extends Error {
  override readonly name = "PlanRangeError";
}

const UUID = /^[\da-f]{8}(-[\da-f]{4}){3}-[\da-f]{12}$/;

export class AddressPlan {
  readonly ranges: FleetRanges;
  readonly #subnet4: Network4;
  readonly #prefix6: Network6;
  readonly capacity: number;

  /** @throws AddressError for ranges that cannot work. */
  constructor(ranges: FleetRanges) {
    const { vni, macFirstOctet } = ranges;
    if (!Number.isInteger(vni.first) || !Number.isInteger(vni.last) || vni.first < 1 || vni.last > MAX_VNI) {
      throw new AddressError(`VXLAN ids ${vni.first} to ${vni.last} are not within 1 to ${MAX_VNI}`);
    }
    if (vni.first > vni.last) throw new AddressError(`VXLAN ids ${vni.first} to ${vni.last} are an empty range`);
    if (!Number.isInteger(macFirstOctet) || macFirstOctet < 0 || macFirstOctet > 255 || (macFirstOctet & 3) !== 2) {
      throw new AddressError(
        `MAC octet ${macFirstOctet} is not of locally administered unicast addresses (low bits 10)`,
      );
    }
    const subnet4 = parseNetwork4(ranges.subnet4);
    if (subnet4.length < 8 || subnet4.length > 29) throw new AddressError(`${ranges.subnet4} is not a /8 to /29`);
    const top = subnet4.base >>> 24;
    if (top === 0 || top === 127 || top >= 224) throw new AddressError(`${ranges.subnet4} holds no host addresses`);
    const prefix6 = parseNetwork6(ranges.prefix6);
    if (prefix6.length !== 40 || prefix6.base >> 121n !== 0x7en) {
      throw new AddressError(`${ranges.prefix6} is not a /40 of unique local addresses (fc00::/7)`);
    }
    this.ranges = ranges;
    this.#subnet4 = subnet4;
    this.#prefix6 = prefix6;
    // Less the network's own address, the gateway's and the broadcast address; less the gateway's MAC.
    this.capacity = Math.min(2 ** (32 - subnet4.length) - 3, GATEWAY_ID);
  }

  /** @throws PlanRangeError for a VXLAN id outside the fleet's range, AddressError for an id that is no UUID. */
  family(family: Family): FamilyPlan {
    const { id, vni } = family;
    if (!UUID.test(id)) throw new AddressError(`family ${id} is no lower-case UUID`);
    const { first, last } = this.ranges.vni;
    if (!Number.isInteger(vni) || vni < first || vni > last) {
      throw new PlanRangeError(`VXLAN id ${vni} of family ${id} is outside the fleet's range ${first} to ${last}`);
    }
    const gatewayMac = this.#mac(vni, GATEWAY_ID);
    const { base, length } = this.#subnet4;
    return {
      family,
      macPrefix: formatMac(gatewayMac.slice(0, 4)),
      subnet4: formatNetwork4(this.#subnet4),
      prefixLength4: length,
      gateway4: formatIp4(base + 2 ** (32 - length) - 2),
      prefix6: formatNetwork6({ base: this.#prefix(vni), length: 64 }),
      gateway6: formatIp6(this.#prefix(vni) | interfaceId(gatewayMac)),
      gatewayLinkLocal6: formatIp6(LINK_LOCAL | interfaceId(gatewayMac)),
      gatewayMac: formatMac(gatewayMac),
      capacity: this.capacity,
    };
  }

  /** @throws PlanRangeError for a clone id that the subnet has no address for. */
  member(family: Family, cloneId: number): MemberAddresses {
    this.family(family);
    if (!Number.isInteger(cloneId) || cloneId < 0 || cloneId >= this.capacity) {
      throw new PlanRangeError(
        `clone id ${cloneId} of family ${family.id} is outside 0 to ${this.capacity - 1}: ` +
          `${this.ranges.subnet4} has no address for it`,
      );
    }
    const mac = this.#mac(family.vni, cloneId);
    return {
      cloneId,
      mac: formatMac(mac),
      ip4: formatIp4(this.#subnet4.base + 1 + cloneId),
      ip6: formatIp6(this.#prefix(family.vni) | interfaceId(mac)),
      linkLocal6: formatIp6(LINK_LOCAL | interfaceId(mac)),
    };
  }

  /** The clone that has this IPv4 or MAC address in the family, or undefined where none can. */
  cloneIdOf(family: Family, address: string): number | undefined {
    const id = address.includes(":")
      ? ((mac) => (mac[4] ?? 0) * 256 + (mac[5] ?? 0))(parseMac(address))
      : parseIp4(address) - this.#subnet4.base - 1;
    if (id < 0 || id >= this.capacity) return undefined;
    const { mac, ip4 } = this.member(family, id);
    return address.toLowerCase() === mac || address === ip4 ? id : undefined;
  }

  #mac(vni: number, id: number): number[] {
    return [this.ranges.macFirstOctet, vni >> 16, vni >> 8 & 255, vni & 255, id >> 8, id & 255];
  }

  #prefix(vni: number): bigint {
    return this.#prefix6.base | BigInt(vni) << 64n;
  }
}
