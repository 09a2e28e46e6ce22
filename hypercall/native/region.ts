/** Mapped memory, seen as bytes for as long as it is mapped. */
import { XenError } from "../errors.ts";
import { type Address, PAGE_BYTES, type PinnedMemory } from "../ports.ts";
import type { Libc } from "./libc.ts";

export class Region implements PinnedMemory {
  readonly address: Address;
  readonly bytes: Uint8Array<ArrayBuffer>;
  readonly #libc: Libc;
  #mapped = true;

  /** Maps whole pages of a device, shared. `operation` completes "Cannot ...". */
  constructor(
    libc: Libc,
    operation: string,
    { fd, byteLength, offset = 0n, write }: { fd: number; byteLength: number; offset?: bigint; write: boolean },
  ) {
    const pages = Math.ceil(byteLength / PAGE_BYTES);
    if (!(pages > 0)) throw new RangeError(`cannot ${operation}: ${byteLength} bytes are no memory`);
    const address = libc.map(fd, pages * PAGE_BYTES, offset, write);
    if (address < 0n) throw new XenError(operation, Number(address));
    const pointer = Deno.UnsafePointer.create(address);
    if (pointer === null) throw new TypeError("mmap gave address 0");
    this.#libc = libc;
    this.address = address as Address;
    this.bytes = new Uint8Array(Deno.UnsafePointerView.getArrayBuffer(pointer, pages * PAGE_BYTES));
  }

  /** Detaches the bytes (every view of them becomes empty), then unmaps. */
  [Symbol.dispose](): void {
    if (!this.#mapped) return;
    this.#mapped = false;
    const byteLength = this.bytes.byteLength;
    this.bytes.buffer.transfer(0);
    this.#libc.unmap(this.address, byteLength);
  }
}
