/** Pinned memory where there is no `/dev/xen/hypercall`: anonymous pages, locked as far as the limit of the process allows. */
import { errorCode } from "../hypercall/errors.ts";
import type { Address, PinnedMemory } from "../hypercall/ports.ts";
import type { PinnedAllocator } from "./ports.ts";

const SYMBOLS = {
  /** void *mmap(void *addr, size_t length, int prot, int flags, int fd, off_t offset) */
  mmap: { parameters: ["u64", "usize", "i32", "i32", "i32", "i64"], result: "u64" },
  /** int munmap(void *addr, size_t length) */
  munmap: { parameters: ["u64", "usize"], result: "i32" },
  /** int *__errno_location(void) */
  __errno_location: { parameters: [], result: "pointer" },
} as const;

const PROT_READ_WRITE = 3;
/** MAP_PRIVATE | MAP_ANONYMOUS | MAP_LOCKED | MAP_POPULATE */
const FLAGS = 0x2 | 0x20 | 0x2000 | 0x8000;
const MAP_FAILED = 0xffff_ffff_ffff_ffffn;

export function nativeMemory(): PinnedAllocator {
  const { symbols } = Deno.dlopen("libc.so.6", SYMBOLS);
  const errno = symbols.__errno_location();
  return {
    allocate(byteLength: number): PinnedMemory {
      const length = Math.ceil(byteLength / 4096) * 4096;
      const address = symbols.mmap(0n, BigInt(length), PROT_READ_WRITE, FLAGS, -1, 0n);
      if (address === MAP_FAILED) {
        const number = errno === null ? 0 : new Deno.UnsafePointerView(errno).getInt32();
        throw new Error(`Cannot map ${length} locked bytes: ${errorCode(number)}`);
      }
      const pointer = Deno.UnsafePointer.create(address);
      if (pointer === null) throw new TypeError("mmap gave no address");
      const bytes = new Uint8Array(Deno.UnsafePointerView.getArrayBuffer(pointer, length));
      return {
        address: address as Address,
        bytes,
        [Symbol.dispose]: () => {
          symbols.munmap(address, BigInt(length));
        },
      };
    },
  };
}
