/** Text and numbers of MAC, IPv4 and IPv6 addresses. Parsers take the canonical spellings and refuse all else. */

/** An address that cannot be used; the message names the text and what is wrong with it. */
export class AddressError extends Error {
  override readonly name = "AddressError";
}

export interface Network4 {
  /** The lowest address, as an unsigned 32-bit number. */
  readonly base: number;
  readonly length: number;
}

export interface Network6 {
  readonly base: bigint;
  readonly length: number;
}

/** An unsigned 32-bit number. */
export function parseIp4(text: string): number {
  const parts = text.split(".");
  let value = 0;
  for (const part of parts) {
    if (!/^(0|[1-9]\d{0,2})$/.test(part) || Number(part) > 255) throw new AddressError(`${text} is no IPv4 address`);
    value = value * 256 + Number(part);
  }
  if (parts.length !== 4) throw new AddressError(`${text} is no IPv4 address`);
  return value;
}

export function formatIp4(value: number): string {
  return [24, 16, 8, 0].map((shift) => (value >>> shift) & 255).join(".");
}

/** `10.83.0.0/16`; bits below the prefix must be zero. */
export function parseNetwork4(text: string): Network4 {
  const match = /^([\d.]+)\/(\d{1,2})$/.exec(text);
  const length = Number(match?.[2]);
  if (match?.[1] === undefined || length > 32) throw new AddressError(`${text} is no IPv4 network`);
  const base = parseIp4(match[1]);
  if (base % 2 ** (32 - length) !== 0) throw new AddressError(`${text} has bits set below its prefix`);
  return { base, length };
}

export function formatNetwork4(network: Network4): string {
  return `${formatIp4(network.base)}/${network.length}`;
}

/** A 128-bit number. No embedded IPv4, no zone. */
export function parseIp6(text: string): bigint {
  const fail = () => new AddressError(`${text} is no IPv6 address`);
  const halves = text.split("::");
  if (halves.length > 2) throw fail();
  const groups = (half: string | undefined) => half === undefined || half === "" ? [] : half.split(":");
  const head = groups(halves[0]);
  const tail = groups(halves[1]);
  const missing = 8 - head.length - tail.length;
  if (halves.length === 2 ? missing < 1 : missing !== 0) throw fail();
  let value = 0n;
  for (const group of [...head, ...Array<string>(missing).fill("0"), ...tail]) {
    if (!/^[\da-f]{1,4}$/i.test(group)) throw fail();
    value = value << 16n | BigInt(`0x${group}`);
  }
  return value;
}

/** RFC 5952: lower case, the longest run of two or more zero groups shortened. */
export function formatIp6(value: bigint): string {
  const groups = Array.from({ length: 8 }, (_, i) => (value >> BigInt(112 - 16 * i) & 0xffffn).toString(16));
  let best = { start: 0, length: 1 };
  for (let start = 0; start < 8; start++) {
    let length = 0;
    while (start + length < 8 && groups[start + length] === "0") length++;
    if (length > best.length) best = { start, length };
  }
  if (best.length < 2) return groups.join(":");
  return `${groups.slice(0, best.start).join(":")}::${groups.slice(best.start + best.length).join(":")}`;
}

export function parseNetwork6(text: string): Network6 {
  const match = /^([\da-fA-F:]+)\/(\d{1,3})$/.exec(text);
  const length = Number(match?.[2]);
  if (match?.[1] === undefined || length > 128) throw new AddressError(`${text} is no IPv6 network`);
  const base = parseIp6(match[1]);
  if (base & (1n << BigInt(128 - length)) - 1n) throw new AddressError(`${text} has bits set below its prefix`);
  return { base, length };
}

export function formatNetwork6(network: Network6): string {
  return `${formatIp6(network.base)}/${network.length}`;
}

/** 4 or 6, for an address of a host in either version. */
export function ipVersion(text: string): 4 | 6 {
  if (text.includes(":")) {
    parseIp6(text);
    return 6;
  }
  parseIp4(text);
  return 4;
}

export function formatMac(bytes: readonly number[]): string {
  return bytes.map((byte) => byte.toString(16).padStart(2, "0")).join(":");
}

export function parseMac(text: string): number[] {
  if (!/^[\da-f]{2}(:[\da-f]{2}){5}$/i.test(text)) throw new AddressError(`${text} is no MAC address`);
  return text.split(":").map((byte) => parseInt(byte, 16));
}

/** The interface identifier that SLAAC makes of a MAC address (RFC 4291, appendix A): 64 bits. */
export function interfaceId(mac: readonly number[]): bigint {
  const [a = 0, b = 0, c = 0, ...rest] = mac;
  return [a ^ 2, b, c, 0xff, 0xfe, ...rest].reduce((value, byte) => value << 8n | BigInt(byte), 0n);
}
