/** Files by the C library, with their descriptors: positioned reads and writes, locks, holes. For worker entries and main.ts. */
import { errorCode } from "../hypercall/errors.ts";
import { type Address, PAGE_BYTES, type PinnedMemory } from "../hypercall/ports.ts";
import { DiskError } from "./errors.ts";
import type { FilePort, FileStore } from "./ports.ts";

/** Each function with its C declaration. */
const SYMBOLS = {
  /** int open(const char *path, int flags, ... mode_t mode) */
  open: { parameters: ["buffer", "i32", "u32"], result: "i32" },
  /** int close(int fd) */
  close: { parameters: ["i32"], result: "i32" },
  /** ssize_t pread64(int fd, void *buf, size_t count, off64_t offset) */
  pread64: { parameters: ["i32", "buffer", "usize", "i64"], result: "isize" },
  /** ssize_t pwrite64(int fd, const void *buf, size_t count, off64_t offset) */
  pwrite64: { parameters: ["i32", "buffer", "usize", "i64"], result: "isize" },
  /** int fdatasync(int fd) */
  fdatasync: { parameters: ["i32"], result: "i32" },
  /** int fsync(int fd) */
  fsync: { parameters: ["i32"], result: "i32" },
  /** int ftruncate64(int fd, off64_t length) */
  ftruncate64: { parameters: ["i32", "i64"], result: "i32" },
  /** int fallocate64(int fd, int mode, off64_t offset, off64_t len) */
  fallocate64: { parameters: ["i32", "i32", "i64", "i64"], result: "i32" },
  /** off64_t lseek64(int fd, off64_t offset, int whence) */
  lseek64: { parameters: ["i32", "i64", "i32"], result: "i64" },
  /** int flock(int fd, int operation) */
  flock: { parameters: ["i32", "i32"], result: "i32" },
  /** void *mmap(void *addr, size_t length, int prot, int flags, int fd, off_t offset) */
  mmap: { parameters: ["u64", "usize", "i32", "i32", "i32", "i64"], result: "u64" },
  /** int munmap(void *addr, size_t length) */
  munmap: { parameters: ["u64", "usize"], result: "i32" },
  /** int *__errno_location(void): the calling thread's */
  __errno_location: { parameters: [], result: "pointer" },
} as const;

/** asm-generic/fcntl.h, sys/file.h, linux/falloc.h, asm-generic/mman.h. */
const O_RDONLY = 0;
const O_RDWR = 2;
const O_CREAT = 0o100;
const O_EXCL = 0o200;
const O_CLOEXEC = 0o2000000;
const SEEK_END = 2;
const LOCK_SH = 1;
const LOCK_EX = 2;
const LOCK_NB = 4;
const FALLOC_FL_KEEP_SIZE = 1;
const FALLOC_FL_PUNCH_HOLE = 2;
const PROT_READ_WRITE = 3;
/** MAP_PRIVATE, MAP_ANONYMOUS, MAP_LOCKED, MAP_POPULATE. */
const MAP_FLAGS = 0x02 | 0x20 | 0x2000 | 0x8000;
const MAP_FAILED = 0xffff_ffff_ffff_ffffn;
const EWOULDBLOCK = 11;
const EINTR = 4;
const EOPNOTSUPP = 95;

class Libc {
  readonly symbols = Deno.dlopen("libc.so.6", SYMBOLS).symbols;
  readonly #errno: Deno.UnsafePointerView;

  constructor() {
    const location = this.symbols.__errno_location();
    if (location === null) throw new TypeError("__errno_location gave no address");
    this.#errno = new Deno.UnsafePointerView(location);
  }

  /** Right after the call that failed. */
  get errno(): number {
    return this.#errno.getInt32();
  }

  error(operation: string, errno = this.errno): DiskError {
    return new DiskError(operation, errorCode(errno), `errno ${errno}`);
  }
}

/** One instance serves one thread: errno is a thread's own. */
export class NativeFiles implements FileStore {
  readonly #libc = new Libc();

  open(path: string, mode: "peek" | "read" | "write"): FilePort {
    return this.#open(path, mode === "write" ? O_RDWR : O_RDONLY, mode);
  }

  create(path: string): FilePort {
    return this.#open(path, O_RDWR | O_CREAT | O_EXCL, "create");
  }

  realPath(path: string): string {
    try {
      return Deno.realPathSync(path);
    } catch (cause) {
      throw denoError(`find ${path}`, cause);
    }
  }

  remove(path: string): void {
    try {
      Deno.removeSync(path);
    } catch (cause) {
      throw denoError(`remove ${path}`, cause);
    }
    syncDirectory(this.#libc, path);
  }

  list(directory: string): string[] | undefined {
    try {
      return [...Deno.readDirSync(directory)].filter((entry) => entry.isFile).map((entry) => entry.name);
    } catch (cause) {
      if (cause instanceof Deno.errors.NotADirectory) return undefined;
      throw denoError(`list ${directory}`, cause);
    }
  }

  /**
   * Locked, populated memory of this process, zeroed: for the staging of grant copies, which memory of /dev/xen/hypercall cannot
   * serve.
   */
  allocate(byteLength: number): PinnedMemory {
    return new LockedMemory(this.#libc, byteLength);
  }

  #open(path: string, flags: number, mode: "peek" | "read" | "write" | "create"): FilePort {
    const operation = `open ${path}`;
    const { symbols } = this.#libc;
    const fd = symbols.open(new TextEncoder().encode(`${path}\0`), flags | O_CLOEXEC, 0o600);
    if (fd < 0) throw this.#libc.error(operation);
    if (mode === "peek") return new NativeFile(this.#libc, path, fd, false);
    if (symbols.flock(fd, (mode === "read" ? LOCK_SH : LOCK_EX) | LOCK_NB) < 0) {
      const { errno } = this.#libc;
      symbols.close(fd);
      if (errno === EWOULDBLOCK) throw new DiskError(operation, "BUSY", "another process or disk uses it");
      throw this.#libc.error(operation, errno);
    }
    return new NativeFile(this.#libc, path, fd, mode === "create");
  }
}

class NativeFile implements FilePort {
  readonly path: string;
  readonly #libc: Libc;
  readonly #fd: number;
  /** Its name is not durable yet. */
  #nameUnsynced: boolean;
  #open = true;

  constructor(libc: Libc, path: string, fd: number, created: boolean) {
    this.#libc = libc;
    this.path = path;
    this.#fd = fd;
    this.#nameUnsynced = created;
  }

  /** By seeking: a block device's status says 0. */
  size(): number {
    const end = Number(this.#libc.symbols.lseek64(this.#fd, 0n, SEEK_END));
    if (end < 0) throw this.#libc.error(`measure ${this.path}`);
    return end;
  }

  read(into: Uint8Array, offset: number): number {
    let done = 0;
    while (done < into.byteLength) {
      const part = backed(into, done);
      const got = Number(this.#libc.symbols.pread64(this.#fd, part, BigInt(part.byteLength), BigInt(offset + done)));
      if (got < 0 && this.#libc.errno === EINTR) continue;
      if (got < 0) throw this.#libc.error(`read ${this.path}`);
      if (got === 0) break;
      done += got;
    }
    return done;
  }

  write(bytes: Uint8Array, offset: number): void {
    let done = 0;
    while (done < bytes.byteLength) {
      const part = backed(bytes, done);
      const put = Number(this.#libc.symbols.pwrite64(this.#fd, part, BigInt(part.byteLength), BigInt(offset + done)));
      if (put < 0 && this.#libc.errno === EINTR) continue;
      if (put < 0) throw this.#libc.error(`write ${this.path}`);
      done += put;
    }
  }

  sync(): void {
    if (this.#libc.symbols.fdatasync(this.#fd) < 0) throw this.#libc.error(`sync ${this.path}`);
    if (!this.#nameUnsynced) return;
    syncDirectory(this.#libc, this.path);
    this.#nameUnsynced = false;
  }

  truncate(byteLength: number): void {
    if (this.#libc.symbols.ftruncate64(this.#fd, BigInt(byteLength)) < 0) throw this.#libc.error(`resize ${this.path}`);
  }

  punchHole(offset: number, byteLength: number): void {
    const mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
    if (this.#libc.symbols.fallocate64(this.#fd, mode, BigInt(offset), BigInt(byteLength)) === 0) return;
    if (this.#libc.errno !== EOPNOTSUPP) throw this.#libc.error(`punch a hole into ${this.path}`);
    const zeros = new Uint8Array(Math.min(byteLength, 1024 * 1024));
    for (let at = 0; at < byteLength; at += zeros.byteLength) {
      this.write(zeros.subarray(0, Math.min(zeros.byteLength, byteLength - at)), offset + at);
    }
  }

  share(): void {
    if (this.#libc.symbols.flock(this.#fd, LOCK_SH | LOCK_NB) < 0) throw this.#libc.error(`share ${this.path}`);
  }

  [Symbol.dispose](): void {
    if (!this.#open) return;
    this.#open = false;
    this.#libc.symbols.close(this.#fd);
  }
}

/** The rest of the bytes, as FFI takes them: never of a SharedArrayBuffer here. */
function backed(bytes: Uint8Array, from: number): Uint8Array<ArrayBuffer> {
  return bytes.subarray(from) as Uint8Array<ArrayBuffer>;
}

function syncDirectory(libc: Libc, path: string): void {
  const slash = path.lastIndexOf("/");
  const directory = slash > 0 ? path.slice(0, slash) : slash === 0 ? "/" : ".";
  const fd = libc.symbols.open(new TextEncoder().encode(`${directory}\0`), O_RDONLY | O_CLOEXEC, 0);
  if (fd < 0) throw libc.error(`open ${directory}`);
  const result = libc.symbols.fsync(fd);
  const { errno } = libc;
  libc.symbols.close(fd);
  if (result < 0) throw libc.error(`sync ${directory}`, errno);
}

function denoError(operation: string, cause: unknown): DiskError {
  const code = cause instanceof Error && "code" in cause && cause.code === "ENOENT" ? "ENOENT" : "EIO";
  return new DiskError(operation, code, cause instanceof Error ? cause.message : String(cause), { cause });
}

class LockedMemory implements PinnedMemory {
  readonly address: Address;
  readonly bytes: Uint8Array<ArrayBuffer>;
  readonly #libc: Libc;
  #mapped = true;

  constructor(libc: Libc, byteLength: number) {
    const length = Math.ceil(byteLength / PAGE_BYTES) * PAGE_BYTES;
    const address = libc.symbols.mmap(0n, BigInt(length), PROT_READ_WRITE, MAP_FLAGS, -1, 0n);
    if (address === MAP_FAILED) throw libc.error(`lock ${length} bytes of memory`);
    const pointer = Deno.UnsafePointer.create(address);
    if (pointer === null) throw new TypeError("mmap gave address 0");
    this.#libc = libc;
    this.address = address as Address;
    this.bytes = new Uint8Array(Deno.UnsafePointerView.getArrayBuffer(pointer, length));
  }

  [Symbol.dispose](): void {
    if (!this.#mapped) return;
    this.#mapped = false;
    const { byteLength } = this.bytes;
    this.bytes.buffer.transfer(0);
    this.#libc.symbols.munmap(this.address, BigInt(byteLength));
  }
}
