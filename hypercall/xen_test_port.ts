/** A HypercallPort for xen_test.ts: memory at made-up addresses, and whatever the test answers for each hypercall. */
import type { Address, Domid, HypercallPort, PinnedMemory } from "./ports.ts";

export interface Call {
  readonly op: number;
  readonly args: readonly bigint[];
}

export class FakePort implements HypercallPort {
  readonly calls: Call[] = [];
  readonly deviceModelOps: { readonly domid: Domid; readonly buffer: Uint8Array }[] = [];
  readonly #memory = new Map<bigint, Uint8Array<ArrayBuffer>>();
  #next = 0x10_0000n;

  /** Answers a hypercall. xen_version is answered before it is asked. */
  handle: (call: Call) => number = () => 0;
  version = 0x0004_0011;
  deviceModelResult = 0;

  get allocations(): number {
    return this.#memory.size;
  }

  allocate(byteLength: number): PinnedMemory {
    const bytes = new Uint8Array(Math.ceil(byteLength / 4096) * 4096);
    const address = this.#next;
    this.#next += BigInt(bytes.byteLength) + 0x10_0000n;
    this.#memory.set(address, bytes);
    return {
      address: address as Address,
      bytes,
      [Symbol.dispose]: () => void this.#memory.delete(address),
    };
  }

  /** The bytes at an address, to the end of their allocation. Throws where nothing is allocated: Xen would say EFAULT. */
  at(address: bigint): Uint8Array<ArrayBuffer> {
    for (const [start, bytes] of this.#memory) {
      if (address >= start && address < start + BigInt(bytes.byteLength)) {
        return bytes.subarray(Number(address - start));
      }
    }
    throw new Error(`nothing is allocated at 0x${address.toString(16)}`);
  }

  call(op: number, ...args: bigint[]): bigint {
    const call = { op, args };
    if (op === 17) {
      if (args[0] === 0n) return BigInt(this.version);
      const text = args[0] === 1n ? ".5+72" : "xen-3.0-x86_64 hvm-3.0-x86_64 ";
      this.at(args[1] ?? 0n).set(new TextEncoder().encode(`${text}\0`));
      return 0n;
    }
    this.calls.push(call);
    return BigInt(this.handle(call));
  }

  deviceModelOp(domid: Domid, buffer: Uint8Array): number {
    this.deviceModelOps.push({ domid, buffer: buffer.slice() });
    return this.deviceModelResult;
  }
}
