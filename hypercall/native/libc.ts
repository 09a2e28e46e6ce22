/**
 * The C library, as far as this program calls it. One instance serves one thread: errno is a thread's own, and is read from its
 * place right after the call, with no other call between.
 */
import { errno as errnoOf, XenError } from "../errors.ts";
import type { Address } from "../ports.ts";

/** Each function with its C declaration. Pointers into mapped memory are passed as u64. */
const SYMBOLS = {
  /** int open(const char *path, int flags, ... mode_t mode) */
  open: { parameters: ["buffer", "i32", "u32"], result: "i32" },
  /** int close(int fd) */
  close: { parameters: ["i32"], result: "i32" },
  /** ssize_t read(int fd, void *buf, size_t count) */
  read: { parameters: ["i32", "buffer", "usize"], result: "isize" },
  /** ssize_t write(int fd, const void *buf, size_t count) */
  write: { parameters: ["i32", "buffer", "usize"], result: "isize" },
  /** int ioctl(int fd, unsigned long request, ... void *argument) */
  ioctl: { parameters: ["i32", "u64", "buffer"], result: "i32" },
  /** long syscall(long number, ...): here ioctl(fd, request, argument), whose own result is cut to an int */
  syscall: { parameters: ["i64", "i64", "u64", "buffer"], result: "i64" },
  /** void *mmap(void *addr, size_t length, int prot, int flags, int fd, off_t offset) */
  mmap: { parameters: ["u64", "usize", "i32", "i32", "i32", "i64"], result: "u64" },
  /** int munmap(void *addr, size_t length) */
  munmap: { parameters: ["u64", "usize"], result: "i32" },
  /** int epoll_create1(int flags) */
  epoll_create1: { parameters: ["i32"], result: "i32" },
  /** int epoll_ctl(int epfd, int op, int fd, struct epoll_event *event) */
  epoll_ctl: { parameters: ["i32", "i32", "i32", "buffer"], result: "i32" },
  /** int epoll_wait(int epfd, struct epoll_event *events, int maxevents, int timeout) */
  epoll_wait: { parameters: ["i32", "buffer", "i32", "i32"], result: "i32" },
  /** int eventfd(unsigned int initval, int flags) */
  eventfd: { parameters: ["u32", "i32"], result: "i32" },
  /** int *__errno_location(void): where this thread's errno is, for as long as the thread lives */
  __errno_location: { parameters: [], result: "pointer" },
} as const;

/** asm-generic/fcntl.h; the same bits as EFD_*, EPOLL_CLOEXEC. */
export const O_RDWR = 2;
export const O_NONBLOCK = 0o4000;
export const O_CLOEXEC = 0o2000000;
/** asm/unistd_64.h. */
const SYS_IOCTL = 16n;

const PROT_READ = 1;
const PROT_WRITE = 2;
const MAP_SHARED = 1;
const MAP_FAILED = 0xffff_ffff_ffff_ffffn;

export class Libc {
  readonly #symbols: Deno.DynamicLibrary<typeof SYMBOLS>["symbols"];
  readonly #errno: Deno.UnsafePointerView;

  /** For the calling thread. The library stays loaded: the process has it anyway, and mappings outlive whoever made them. */
  constructor() {
    this.#symbols = Deno.dlopen("libc.so.6", SYMBOLS).symbols;
    const location = this.#symbols.__errno_location();
    if (location === null) throw new TypeError("__errno_location gave no address");
    this.#errno = new Deno.UnsafePointerView(location);
  }

  /** Result of a call that gives -1 for an error: itself, or -errno. */
  #result(result: number | bigint): number {
    return result === -1 || result === -1n ? -this.#errno.getInt32() : Number(result);
  }

  /** A descriptor. Throws a XenError that says `hint`. */
  openFile(path: string, flags: number, hint: string): number {
    const fd = this.#result(this.#symbols.open(new TextEncoder().encode(`${path}\0`), flags | O_CLOEXEC, 0));
    if (fd < 0) throw new XenError(`open ${path} (${hint})`, fd);
    return fd;
  }

  close(fd: number): void {
    this.#symbols.close(fd);
  }

  /** Bytes read, or -errno. */
  read(fd: number, buffer: Uint8Array<ArrayBuffer>): number {
    return this.#result(this.#symbols.read(fd, buffer, BigInt(buffer.byteLength)));
  }

  /** Bytes written, or -errno. */
  write(fd: number, buffer: Uint8Array<ArrayBuffer>): number {
    return this.#result(this.#symbols.write(fd, buffer, BigInt(buffer.byteLength)));
  }

  /** An int, or -errno. */
  ioctl(fd: number, request: number, argument: Uint8Array<ArrayBuffer>): number {
    return this.#result(this.#symbols.ioctl(fd, BigInt(request), argument));
  }

  /** The whole long that the kernel gave, or -errno: ioctl() would cut it to an int. */
  longIoctl(fd: number, request: number, argument: Uint8Array<ArrayBuffer>): bigint {
    const result = this.#symbols.syscall(SYS_IOCTL, BigInt(fd), BigInt(request), argument);
    return result === -1n ? BigInt(-this.#errno.getInt32()) : result;
  }

  /** An address, or -errno. */
  map(fd: number, byteLength: number, offset: bigint, write: boolean): bigint {
    const protection = write ? PROT_READ | PROT_WRITE : PROT_READ;
    const address = this.#symbols.mmap(0n, BigInt(byteLength), protection, MAP_SHARED, fd, offset);
    return address === MAP_FAILED ? BigInt(-this.#errno.getInt32()) : address;
  }

  unmap(address: Address, byteLength: number): void {
    const result = this.#result(this.#symbols.munmap(address, BigInt(byteLength)));
    if (result < 0) throw new XenError(`unmap ${byteLength} bytes`, result);
  }

  epollCreate(): number {
    return this.#checked("create an epoll", this.#symbols.epoll_create1(O_CLOEXEC));
  }

  /** 0, or -errno. */
  epollControl(epoll: number, operation: number, fd: number, event: Uint8Array<ArrayBuffer>): number {
    return this.#result(this.#symbols.epoll_ctl(epoll, operation, fd, event));
  }

  /** How many of `events` were written, or -errno. Blocks the thread. */
  epollWait(epoll: number, events: Uint8Array<ArrayBuffer>, capacity: number, timeoutMs: number): number {
    return this.#result(this.#symbols.epoll_wait(epoll, events, capacity, timeoutMs));
  }

  eventfd(): number {
    return this.#checked("create an eventfd", this.#symbols.eventfd(0, O_CLOEXEC | O_NONBLOCK));
  }

  #checked(operation: string, result: number): number {
    const checked = this.#result(result);
    if (checked < 0) throw new XenError(operation, checked);
    return checked;
  }
}

/** Where a buffer's bytes are. The buffer must be kept by whoever uses the address, and must not be smaller than 65 bytes (V8 moves those). */
export function addressOf(buffer: Uint8Array<ArrayBuffer>): Address {
  return Deno.UnsafePointer.value(Deno.UnsafePointer.of(buffer)) as Address;
}

/** Whether a negative result is this errno. */
export function failedWith(result: number, code: Parameters<typeof errnoOf>[0]): boolean {
  return result === -errnoOf(code);
}
