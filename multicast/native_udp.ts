/**
 * UDP sockets by system calls: batches of datagrams straight from and into the packets' pinned memory (sendmmsg(2), recvmmsg(2)).
 * One instance serves one thread.
 */
import { errno as errnoOf, errorCode } from "../hypercall/errors.ts";
import { type DatagramSocket, type Outgoing, type Packet, PACKET_CAPACITY, type SendResult } from "./ports.ts";
import { type Endpoint, formatEndpoint } from "./protocol.ts";

/** Each function with its C declaration. */
const SYMBOLS = {
  /** int socket(int domain, int type, int protocol) */
  socket: { parameters: ["i32", "i32", "i32"], result: "i32" },
  /** int close(int fd) */
  close: { parameters: ["i32"], result: "i32" },
  /** int bind(int fd, const struct sockaddr *addr, socklen_t addrlen) */
  bind: { parameters: ["i32", "buffer", "u32"], result: "i32" },
  /** int getsockname(int fd, struct sockaddr *addr, socklen_t *addrlen) */
  getsockname: { parameters: ["i32", "buffer", "buffer"], result: "i32" },
  /** int setsockopt(int fd, int level, int optname, const void *optval, socklen_t optlen) */
  setsockopt: { parameters: ["i32", "i32", "i32", "buffer", "u32"], result: "i32" },
  /** int sendmmsg(int fd, struct mmsghdr *msgvec, unsigned int vlen, int flags) */
  sendmmsg: { parameters: ["i32", "buffer", "u32", "i32"], result: "i32" },
  /** int recvmmsg(int fd, struct mmsghdr *msgvec, unsigned int vlen, int flags, struct timespec *timeout) */
  recvmmsg: { parameters: ["i32", "buffer", "u32", "i32", "pointer"], result: "i32" },
  /** int *__errno_location(void): where this thread's errno is */
  __errno_location: { parameters: [], result: "pointer" },
} as const;

const AF_INET = 2;
/** SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK */
const SOCKET_TYPE = 2 | 0o2000000 | 0o4000;
const MSG_DONTWAIT = 0x40;
const SOL_SOCKET = 1;
const SO_REUSEADDR = 2;
const SO_SNDBUF = 7;
const SO_RCVBUF = 8;
const SO_SNDBUFFORCE = 32;
const SO_RCVBUFFORCE = 33;
const IPPROTO_IP = 0;
const IP_MTU_DISCOVER = 10;
/** The socket sets the don't-fragment bit: a datagram too large for the path fails with EMSGSIZE. */
const IP_PMTUDISC_DO = 2;
const IP_MULTICAST_IF = 32;
const IP_MULTICAST_TTL = 33;
const IP_MULTICAST_LOOP = 34;
const IP_ADD_MEMBERSHIP = 35;
const IP_DROP_MEMBERSHIP = 36;
const IP_MULTICAST_ALL = 49;
const EMSGSIZE = 90;
const EINTR = 4;

const SOL_UDP = 17;
/** One message of several datagrams, cut by the kernel at this length (udp(7)): the way through the stack is gone once for all. */
const UDP_SEGMENT = 103;
/** Segments of one message: all fit into its 64 KiB. */
const MAX_SEGMENTS = 40;
const EIO = 5;

/** struct mmsghdr: msg_name 0, msg_namelen 8, msg_iov 16, msg_iovlen 24, msg_control 32, msg_controllen 40, msg_flags 48, msg_len 56. */
const MMSGHDR_BYTES = 64;
/** struct iovec: iov_base, iov_len. */
const IOVEC_BYTES = 16;
const SOCKADDR_BYTES = 16;
/** struct cmsghdr with a u16: cmsg_len 0, cmsg_level 8, cmsg_type 12, data 16; padded. */
const CONTROL_BYTES = 24;
const CONTROL_LENGTH = 18;
/** Messages of one system call. */
const MAX_MESSAGES = 256;

export interface UdpOptions {
  /** Where to bind: port 0 for any. `ip` is the interface of multicast, too; 0 leaves that to the routes. */
  readonly local: Endpoint;
  /** Receive what is sent to groups (and nothing else): binds to the port on any address. */
  readonly groups?: boolean;
  readonly receiveBufferBytes?: number;
  readonly sendBufferBytes?: number;
  /** Let the kernel cut large messages into datagrams (UDP_SEGMENT): true by default, and given up where a device cannot. */
  readonly segments?: boolean;
  /** What is sent to groups reaches other processes of this host, and this one. */
  readonly loopback?: boolean;
  /** Hops that multicast may take. */
  readonly timeToLive?: number;
}

/** Headers, vectors and addresses of a batch, in memory that does not move. */
class Batch {
  readonly headers = new Uint8Array(MAX_MESSAGES * MMSGHDR_BYTES);
  readonly headerView = new DataView(this.headers.buffer);
  readonly vectors = new Uint8Array(MAX_MESSAGES * IOVEC_BYTES);
  readonly vectorView = new DataView(this.vectors.buffer);
  readonly addresses = new Uint8Array(MAX_MESSAGES * SOCKADDR_BYTES);
  readonly addressView = new DataView(this.addresses.buffer);
  readonly controls = new Uint8Array(MAX_MESSAGES * CONTROL_BYTES);
  readonly controlView = new DataView(this.controls.buffer);
  readonly vectorAddress = BigInt(Deno.UnsafePointer.value(Deno.UnsafePointer.of(this.vectors)));
  readonly #controlAddress = BigInt(Deno.UnsafePointer.value(Deno.UnsafePointer.of(this.controls)));

  constructor() {
    const addresses = BigInt(Deno.UnsafePointer.value(Deno.UnsafePointer.of(this.addresses)));
    for (let n = 0; n < MAX_MESSAGES; n++) {
      const at = n * MMSGHDR_BYTES;
      this.headerView.setBigUint64(at, addresses + BigInt(n * SOCKADDR_BYTES), true);
      this.headerView.setUint32(at + 8, SOCKADDR_BYTES, true);
      this.headerView.setBigUint64(at + 16, this.vectorAddress + BigInt(n * IOVEC_BYTES), true);
      this.headerView.setBigUint64(at + 24, 1n, true);
      this.addressView.setUint16(n * SOCKADDR_BYTES, AF_INET, true);
      this.controlView.setBigUint64(n * CONTROL_BYTES, BigInt(CONTROL_LENGTH), true);
      this.controlView.setInt32(n * CONTROL_BYTES + 8, SOL_UDP, true);
      this.controlView.setInt32(n * CONTROL_BYTES + 12, UDP_SEGMENT, true);
    }
  }

  /** Message `n` has `count` vectors from `vector` on, and is cut into datagrams of `segment` bytes where it has several. */
  message(n: number, vector: number, count: number, segment: number): void {
    const at = n * MMSGHDR_BYTES;
    this.headerView.setBigUint64(at + 16, this.vectorAddress + BigInt(vector * IOVEC_BYTES), true);
    this.headerView.setUint32(at + 24, count, true);
    this.headerView.setBigUint64(at + 32, count > 1 ? this.#controlAddress + BigInt(n * CONTROL_BYTES) : 0n, true);
    this.headerView.setUint32(at + 40, count > 1 ? CONTROL_BYTES : 0, true);
    this.controlView.setUint16(n * CONTROL_BYTES + 16, segment, true);
  }
}

export class NativeUdp implements DatagramSocket {
  readonly fd: number;
  readonly local: Endpoint;
  readonly #symbols = Deno.dlopen("libc.so.6", SYMBOLS).symbols;
  readonly #errno: Deno.UnsafePointerView;
  readonly #interface: number;
  readonly #in = new Batch();
  readonly #out = new Batch();
  /** Datagrams of each message that {@link #fill} laid out. */
  readonly #datagrams: number[] = [];
  #segments: boolean;
  #inPackets: readonly Packet[] = [];

  /** Throws an Error that names the endpoint when the socket cannot be made or bound. */
  constructor(options: UdpOptions) {
    const location = this.#symbols.__errno_location();
    if (location === null) throw new TypeError("__errno_location gave no address");
    this.#errno = new Deno.UnsafePointerView(location);
    const name = formatEndpoint(options.local);
    this.#interface = options.local.ip;
    this.#segments = options.segments ?? true;
    this.fd = this.#checked(`make a UDP socket for ${name}`, this.#symbols.socket(AF_INET, SOCKET_TYPE, 0));
    try {
      this.#buffer(SO_RCVBUFFORCE, SO_RCVBUF, options.receiveBufferBytes ?? 32 << 20);
      this.#buffer(SO_SNDBUFFORCE, SO_SNDBUF, options.sendBufferBytes ?? 4 << 20);
      this.#option(IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO, "forbid fragments");
      this.#option(IPPROTO_IP, IP_MULTICAST_TTL, options.timeToLive ?? 4, "set the multicast hops");
      this.#option(IPPROTO_IP, IP_MULTICAST_LOOP, options.loopback ? 1 : 0, "set whether multicast loops back");
      this.#option(IPPROTO_IP, IP_MULTICAST_ALL, 0, "limit multicast to the groups joined");
      if (options.groups) this.#option(SOL_SOCKET, SO_REUSEADDR, 1, "share the port");
      if (this.#interface !== 0) {
        this.#checked(
          `send multicast from ${name}`,
          this.#set(IPPROTO_IP, IP_MULTICAST_IF, addressBytes(this.#interface)),
        );
      }
      const address = sockaddr(options.groups ? { ip: 0, port: options.local.port } : options.local);
      this.#checked(`bind a UDP socket to ${name}`, this.#symbols.bind(this.fd, address, SOCKADDR_BYTES));
      this.local = { ip: options.local.ip, port: this.#port() };
    } catch (error) {
      this.#symbols.close(this.fd);
      throw error;
    }
  }

  receive(packets: readonly Packet[]): number {
    const { headers, headerView, addressView } = this.#in;
    if (packets !== this.#inPackets) this.#bind(packets);
    const count = this.#symbols.recvmmsg(this.fd, headers, Math.min(packets.length, MAX_MESSAGES), MSG_DONTWAIT, null);
    // EAGAIN, or an error of an earlier datagram (ICMP): nothing to read in either case.
    if (count < 0) return 0;
    for (let n = 0; n < count; n++) {
      const packet = packets[n];
      if (packet === undefined) return n;
      packet.length = Math.min(headerView.getUint32(n * MMSGHDR_BYTES + 56, true), PACKET_CAPACITY);
      packet.port = addressView.getUint16(n * SOCKADDR_BYTES + 2);
      packet.ip = addressView.getUint32(n * SOCKADDR_BYTES + 4);
    }
    return count;
  }

  send(messages: readonly Outgoing[], count: number): SendResult {
    let done = 0;
    let failed = 0;
    let tooLarge = false;
    while (done < count) {
      const batch = this.#fill(messages, done, Math.min(count - done, MAX_MESSAGES));
      const sent = this.#symbols.sendmmsg(this.fd, this.#out.headers, batch, MSG_DONTWAIT);
      if (sent > 0) {
        for (let n = 0; n < sent; n++) done += this.#datagrams[n] ?? 0;
        continue;
      }
      const errno = this.#errno.getInt32();
      if (errno === EINTR) continue;
      if (errno === errnoOf("EAGAIN")) break;
      const first = this.#datagrams[0] ?? 1;
      if (first > 1) {
        // The device cannot, or one of them is too large: which, shows when each goes by itself.
        this.#segments = false;
        if (errno === EIO || errno === errnoOf("EINVAL") || errno === EMSGSIZE) continue;
      }
      // The first of the batch is what failed: it is lost, as it might be in the network.
      tooLarge ||= errno === EMSGSIZE;
      failed += first;
      done += first;
    }
    return { done, failed, tooLarge };
  }

  join(group: number): boolean {
    return this.#set(IPPROTO_IP, IP_ADD_MEMBERSHIP, membership(group, this.#interface)) === 0;
  }

  leave(group: number): void {
    this.#set(IPPROTO_IP, IP_DROP_MEMBERSHIP, membership(group, this.#interface));
  }

  [Symbol.dispose](): void {
    this.#symbols.close(this.fd);
  }

  #bind(packets: readonly Packet[]): void {
    this.#inPackets = packets;
    packets.slice(0, MAX_MESSAGES).forEach(({ address }, n) => {
      this.#in.vectorView.setBigUint64(n * IOVEC_BYTES, address, true);
      this.#in.vectorView.setBigUint64(n * IOVEC_BYTES + 8, BigInt(PACKET_CAPACITY), true);
    });
  }

  /** Lays out `count` datagrams, from `from` on, as messages; how many these are. */
  #fill(messages: readonly Outgoing[], from: number, count: number): number {
    const { vectorView, addressView } = this.#out;
    let filled = 0;
    let first = 0;
    for (let n = 0; n <= count; n++) {
      const message = n < count ? messages[from + n] : undefined;
      const start = messages[from + first];
      if (n > first && start !== undefined) {
        const last = messages[from + n - 1];
        const joins = message !== undefined && this.#segments && n - first < MAX_SEGMENTS && message.ip === start.ip &&
          message.port === start.port && message.packet.length <= start.packet.length &&
          // Only the last datagram of a message may be shorter.
          last?.packet.length === start.packet.length;
        if (!joins) {
          addressView.setUint16(filled * SOCKADDR_BYTES + 2, start.port);
          addressView.setUint32(filled * SOCKADDR_BYTES + 4, start.ip);
          this.#out.message(filled, first, n - first, start.packet.length);
          this.#datagrams[filled++] = n - first;
          first = n;
        }
      }
      if (message === undefined) break;
      vectorView.setBigUint64(n * IOVEC_BYTES, message.packet.address, true);
      vectorView.setUint32(n * IOVEC_BYTES + 8, message.packet.length, true);
    }
    return filled;
  }

  #set(level: number, option: number, value: Uint8Array<ArrayBuffer>): number {
    return this.#symbols.setsockopt(this.fd, level, option, value, value.length);
  }

  #option(level: number, option: number, value: number, what: string): void {
    this.#checked(what, this.#set(level, option, new Uint8Array(Int32Array.of(value).buffer)));
  }

  /** Beyond the system's limit where the process may (CAP_NET_ADMIN), else up to it. */
  #buffer(force: number, plain: number, byteLength: number): void {
    const value = new Uint8Array(Int32Array.of(byteLength).buffer);
    if (this.#set(SOL_SOCKET, force, value) < 0) {
      this.#checked("size a socket buffer", this.#set(SOL_SOCKET, plain, value));
    }
  }

  #port(): number {
    const address = new Uint8Array(SOCKADDR_BYTES);
    const length = new Uint8Array(Uint32Array.of(SOCKADDR_BYTES).buffer);
    this.#checked("read the socket's port", this.#symbols.getsockname(this.fd, address, length));
    return new DataView(address.buffer).getUint16(2);
  }

  #checked(operation: string, result: number): number {
    if (result >= 0) return result;
    throw new Error(`Cannot ${operation}: ${errorCode(this.#errno.getInt32())}`);
  }
}

function addressBytes(ip: number): Uint8Array<ArrayBuffer> {
  return Uint8Array.of(ip >>> 24, ip >>> 16, ip >>> 8, ip);
}

/** struct sockaddr_in. */
function sockaddr({ ip, port }: Endpoint): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(SOCKADDR_BYTES);
  const view = new DataView(bytes.buffer);
  view.setUint16(0, AF_INET, true);
  view.setUint16(2, port);
  view.setUint32(4, ip);
  return bytes;
}

/** struct ip_mreq: the group, the interface. */
function membership(group: number, local: number): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(8);
  bytes.set(addressBytes(group));
  bytes.set(addressBytes(local), 4);
  return bytes;
}
