/** Ethernet frames, built and read, for tests: what a guest or a stranger may put on a wire. */
import { parseIp4, parseIp6, parseMac } from "../addresses.ts";

export const BROADCAST = "ff:ff:ff:ff:ff:ff";

export function ip4Bytes(address: string): number[] {
  const value = parseIp4(address);
  return [24, 16, 8, 0].map((shift) => value >>> shift & 255);
}

export function ip6Bytes(address: string): number[] {
  const value = parseIp6(address);
  return Array.from({ length: 16 }, (_, i) => Number(value >> BigInt(120 - 8 * i) & 255n));
}

export function addressBytes(address: string): number[] {
  return address.includes(":") ? ip6Bytes(address) : ip4Bytes(address);
}

const u16 = (value: number) => [value >> 8 & 255, value & 255];
const u32 = (value: number) => [...u16(value >>> 16), ...u16(value & 0xffff)];
export const text = (value: string) => [...new TextEncoder().encode(value)];

/** RFC 1071. */
function checksum(bytes: readonly number[]): number {
  let sum = 0;
  for (let i = 0; i < bytes.length; i += 2) sum += (bytes[i] ?? 0) << 8 | (bytes[i + 1] ?? 0);
  while (sum >> 16) sum = (sum & 0xffff) + (sum >> 16);
  return ~sum & 0xffff;
}

export interface Ends {
  readonly from: string;
  readonly to: string;
}

export function ethernet(macs: Ends, etherType: number, payload: readonly number[]): Uint8Array<ArrayBuffer> {
  const bytes = [...parseMac(macs.to), ...parseMac(macs.from), ...u16(etherType), ...payload];
  return new Uint8Array([...bytes, ...Array<number>(Math.max(0, 60 - bytes.length)).fill(0)]);
}

export function arp(
  macs: Ends,
  operation: 1 | 2,
  sender: { mac: string; ip: string },
  target: { mac: string; ip: string },
): Uint8Array<ArrayBuffer> {
  const body = [parseMac(sender.mac), ip4Bytes(sender.ip), parseMac(target.mac), ip4Bytes(target.ip)].flat();
  return ethernet(macs, 0x0806, [0, 1, 8, 0, 6, 4, 0, operation, ...body]);
}

function packet(ips: Ends, protocol: number, payload: readonly number[]): number[] {
  if (ips.from.includes(":")) {
    return [
      0x60,
      0,
      0,
      0,
      ...u16(payload.length),
      protocol,
      255,
      ...ip6Bytes(ips.from),
      ...ip6Bytes(ips.to),
      ...payload,
    ];
  }
  const header = [0x45, 0, ...u16(20 + payload.length), 0, 1, 0, 0, 64, protocol, 0, 0, ...ip4Bytes(ips.from)];
  const whole = [...header, ...ip4Bytes(ips.to)];
  whole.splice(10, 2, ...u16(checksum(whole)));
  return [...whole, ...payload];
}

/** Fills in the checksum at `offset` of a TCP, UDP or ICMPv6 message, over the pseudo-header too. */
function summed(ips: Ends, protocol: number, message: readonly number[], offset: number): number[] {
  const pseudo = [...addressBytes(ips.from), ...addressBytes(ips.to), ...u32(message.length), ...u32(protocol)];
  const bytes = [...message];
  bytes.splice(offset, 2, ...u16(checksum([...pseudo, ...message])));
  return bytes;
}

function etherTypeOf(ips: Ends): number {
  return ips.from.includes(":") ? 0x86dd : 0x0800;
}

export function udp(
  macs: Ends,
  ips: Ends,
  ports: readonly [number, number],
  payload: readonly number[],
): Uint8Array<ArrayBuffer> {
  const message = [...u16(ports[0]), ...u16(ports[1]), ...u16(8 + payload.length), 0, 0, ...payload];
  return ethernet(macs, etherTypeOf(ips), packet(ips, 17, summed(ips, 17, message, 6)));
}

/** A segment of an open connection: ACK and PSH, with data. */
export function tcp(
  macs: Ends,
  ips: Ends,
  ports: readonly [number, number],
  payload: readonly number[],
): Uint8Array<ArrayBuffer> {
  const header = [...u16(ports[0]), ...u16(ports[1]), ...u32(1000), ...u32(2000), 0x50, 0x18, 0xff, 0xff, 0, 0, 0, 0];
  return ethernet(macs, etherTypeOf(ips), packet(ips, 6, summed(ips, 6, [...header, ...payload], 16)));
}

/** Neighbour advertisement (136) or router advertisement (134), solicitation (135). `rest` follows type, code and checksum. */
export function icmp6(macs: Ends, ips: Ends, type: number, rest: readonly number[]): Uint8Array<ArrayBuffer> {
  return ethernet(macs, 0x86dd, packet(ips, 58, summed(ips, 58, [type, 0, 0, 0, ...rest], 2)));
}

export function neighbourAdvert(macs: Ends, ips: Ends, target: string, mac: string): Uint8Array<ArrayBuffer> {
  return icmp6(macs, ips, 136, [0x20, 0, 0, 0, ...ip6Bytes(target), 2, 1, ...parseMac(mac)]);
}

/** The same frame with an 802.1Q tag. */
export function tagged(frame: Uint8Array, vlan: number): Uint8Array<ArrayBuffer> {
  return new Uint8Array([...frame.subarray(0, 12), 0x81, 0, ...u16(vlan), ...frame.subarray(12)]);
}

/** An inner frame in VXLAN (RFC 7348), in UDP. */
export function vxlan(macs: Ends, ips: Ends, vni: number, inner: Uint8Array): Uint8Array<ArrayBuffer> {
  return udp(macs, ips, [54321, 4789], [8, 0, 0, 0, ...u32(vni * 256), ...inner]);
}

/** A BOOTP request (RFC 2131): discover, or request of an address. */
export function dhcp(
  mac: string,
  kind: 1 | 3,
  clientId: readonly number[],
  address?: string,
  server?: string,
): Uint8Array<ArrayBuffer> {
  const fixed = [1, 1, 6, 0, ...u32(0x1234abcd), 0, 0, 0x80, 0, ...Array<number>(16).fill(0), ...parseMac(mac)];
  const options = [53, 1, kind, 61, clientId.length, ...clientId, 55, 4, 1, 3, 26, 12];
  if (address !== undefined) options.push(50, 4, ...ip4Bytes(address));
  if (server !== undefined) options.push(54, 4, ...ip4Bytes(server));
  const body = [...fixed, ...Array<number>(236 - fixed.length).fill(0), 0x63, 0x82, 0x53, 0x63, ...options, 255];
  return udp({ from: mac, to: BROADCAST }, { from: "0.0.0.0", to: "255.255.255.255" }, [68, 67], body);
}

export interface DhcpAnswer {
  /** 2 an offer, 5 an acknowledgement, 6 a refusal. */
  readonly kind: number;
  readonly address: string;
  readonly options: ReadonlyMap<number, readonly number[]>;
}

export function readDhcp(frame: Uint8Array): DhcpAnswer | undefined {
  const at = 14 + 20 + 8;
  if (frame[12] !== 8 || frame[23] !== 17 || frame[35] !== 67 || frame[at] !== 2) return undefined;
  const options = new Map<number, number[]>();
  for (let i = at + 240; i + 1 < frame.length && frame[i] !== 255; i += 2 + (frame[i + 1] ?? 0)) {
    options.set(frame[i] ?? 0, [...frame.subarray(i + 2, i + 2 + (frame[i + 1] ?? 0))]);
  }
  return { kind: options.get(53)?.[0] ?? 0, address: [...frame.subarray(at + 16, at + 20)].join("."), options };
}

/** Whether the bytes occur anywhere in the frame. */
export function holds(frame: Uint8Array, needle: readonly number[]): boolean {
  return frame.toHex().includes(new Uint8Array(needle).toHex());
}
