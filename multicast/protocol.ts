/** Constants and values of the page distribution protocol. The packet formats are in README.md. */

/** Bytes of one block: a page of guest memory, or a block of a disk. */
export const BLOCK_BYTES = 4096;
/** "SF" and the version: the first three bytes of every packet. */
export const MAGIC = 0x5346;
export const VERSION = 1;

export const HEADER_BYTES = 22;
/** Where the 12 bytes of the nonce (sender, counter) begin in the header. */
export const NONCE_OFFSET = 10;
export const TAG_BYTES = 16;
/** UDP payload of a path with MTU 1500: less 20 bytes of IPv4 and 8 of UDP. */
export const MAX_PAYLOAD_BYTES = 1472;
/** Below this a block would need more than {@link MAX_FRAGMENTS} fragments. */
export const MIN_PAYLOAD_BYTES = 700;
/** A block's fragments; one bit each in a mask. */
export const MAX_FRAGMENTS = 7;
export const ALL_FRAGMENTS = 0x7f;

/** Objects of one family, in either role. */
export const MAX_OBJECTS = 256;
/** Blocks of one object: 1 TiB. */
export const MAX_BLOCKS = 2 ** 28;
/** Blocks named by one range of a request. */
export const MAX_RANGE_BLOCKS = 4096;
/** Last packet counter of a sender: 48 bits. */
export const MAX_COUNTER = 2 ** 48 - 1;

export const MessageType = { Data: 1, Request: 2, Idle: 3, Gone: 4 } as const;

/** How the bytes of a data record are to be read. `Zero` and `Absent` are runs of blocks and carry no bytes. */
export const Codec = { Raw: 0, Deflate: 1, Zstd: 2, Zero: 3, Absent: 4 } as const;

export const RequestFlag = {
  /** A vCPU waits. */
  Urgent: 1,
  /** Answer to the asker alone. */
  Unicast: 2,
  /** Multicast does not reach the asker: send it the family's stream by unicast. */
  FanOut: 4,
} as const;

/** A UDP endpoint, IPv4. `ip` is the address as an unsigned number, most significant byte first. */
export interface Endpoint {
  readonly ip: number;
  readonly port: number;
}

/** A 16-byte id in 32 lower-case hexadecimal digits. */
export type Id = string & { readonly __brand: "Id" };

/** Throws a RangeError unless `text` is a {@link Id}. */
export function parseId(text: string): Id {
  if (!/^[0-9a-f]{32}$/.test(text)) throw new RangeError(`Not an id of 32 hexadecimal digits: ${text}`);
  return text as Id;
}

export function idBytes(id: Id): Uint8Array {
  return Uint8Array.from({ length: 16 }, (_, at) => Number.parseInt(id.slice(2 * at, 2 * at + 2), 16));
}

/** An id as four big-endian words, for comparing. */
export function idWords(id: Id): Uint32Array {
  return Uint32Array.from({ length: 4 }, (_, at) => Number.parseInt(id.slice(8 * at, 8 * at + 8), 16));
}

/** The first 6 bytes of an id: what a packet names a family by, and where an object is looked up. */
export function idTag(id: Id): number {
  return Number.parseInt(id.slice(0, 12), 16);
}

/** "10.0.0.1:7000". Throws a RangeError for anything else. */
export function parseEndpoint(text: string): Endpoint {
  const match = /^(\d{1,3})\.(\d{1,3})\.(\d{1,3})\.(\d{1,3}):(\d{1,5})$/.exec(text);
  const [a, b, c, d, port] = (match ?? []).slice(1).map(Number);
  if (a === undefined || b === undefined || c === undefined || d === undefined || port === undefined) {
    throw new RangeError(`Not an IPv4 endpoint: ${text}`);
  }
  if (a > 255 || b > 255 || c > 255 || d > 255 || port > 65535) throw new RangeError(`Not an IPv4 endpoint: ${text}`);
  return { ip: ((a << 24) | (b << 16) | (c << 8) | d) >>> 0, port };
}

export function formatEndpoint({ ip, port }: Endpoint): string {
  return `${ip >>> 24}.${(ip >>> 16) & 255}.${(ip >>> 8) & 255}.${ip & 255}:${port}`;
}

/** The group of a family: one of 239.192.0.0/14 (organization-local, RFC 2365), picked by its id. */
export function familyGroup(id: Id, port: number): Endpoint {
  const bytes = idBytes(id);
  const [a = 0, b = 0, c = 0] = [bytes[6], bytes[7], bytes[8]];
  return { ip: ((239 << 24) | ((192 + (a & 3)) << 16) | (b << 8) | c) >>> 0, port };
}

/** Bytes of fragment `fragment` of `fragments` of `encodedLength` bytes. All but the last are equally long. */
export function fragmentLength(encodedLength: number, fragments: number, fragment: number): number {
  const each = Math.ceil(encodedLength / fragments);
  return Math.max(0, Math.min(each, encodedLength - fragment * each));
}
