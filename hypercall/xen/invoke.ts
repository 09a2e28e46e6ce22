/** Hypercalls with their arguments in pinned memory, and errors by name. One arena each is kept for the arguments and for their buffers. */
import { DOMCTL, Domctl, HYPERCALL, type InterfaceVersions, type SYSCTL, Sysctl } from "../abi/mod.ts";
import { XenError } from "../errors.ts";
import { type Domid, type HypercallPort, PAGE_BYTES, type PinnedMemory } from "../ports.ts";

/** No buffer of a hypercall is larger: as a bitmap, it is 2 TiB of guest memory. */
const BUFFER_BYTES_MAX = 64 * 1024 * 1024;
const BUFFER_BYTES_FIRST = 64 * 1024;

export class Invoker implements Disposable {
  readonly #argument: PinnedMemory;
  #buffer: PinnedMemory;

  constructor(readonly port: HypercallPort, readonly interfaces: InterfaceVersions) {
    using stack = new DisposableStack();
    this.#argument = stack.use(port.allocate(PAGE_BYTES));
    this.#buffer = stack.use(port.allocate(BUFFER_BYTES_FIRST));
    stack.move();
  }

  /**
   * Memory of at least `byteLength` bytes to give a hypercall a pointer to. What it holds is the last user's. It is the same at each call:
   * good until the next one.
   */
  buffer(byteLength: number): PinnedMemory {
    if (byteLength > BUFFER_BYTES_MAX) throw new RangeError(`a hypercall's buffer of ${byteLength} bytes is too large`);
    if (byteLength > this.#buffer.bytes.byteLength) {
      let capacity = this.#buffer.bytes.byteLength;
      while (capacity < byteLength) capacity *= 2;
      const larger = this.port.allocate(capacity);
      this.#buffer[Symbol.dispose]();
      this.#buffer = larger;
    }
    return this.#buffer;
  }

  /** The same, holding these bytes. */
  bufferOf(bytes: Uint8Array): PinnedMemory {
    const buffer = this.buffer(bytes.byteLength);
    buffer.bytes.set(bytes);
    return buffer;
  }

  /** `op(command, argument)`: its result, or -errno. `argument` is copied in and, when the call returns, out again. */
  tryCommand(op: number, command: number, argument: Uint8Array): number {
    this.#argument.bytes.set(argument);
    const result = this.port.call(op, BigInt(command), this.#argument.address);
    argument.set(this.#argument.bytes.subarray(0, argument.byteLength));
    return Number(result);
  }

  /** The same; throws an error that says `Cannot ${operation}`. */
  command(operation: string, op: number, command: number, argument: Uint8Array): number {
    return checked(operation, this.tryCommand(op, command, argument));
  }

  /** A domctl: the returned bytes are `u` as Xen left it. `u` is what goes in. */
  domctl(operation: string, command: keyof typeof DOMCTL, domid: Domid, u?: Uint8Array): Uint8Array {
    const answer = this.tryDomctl(command, domid, u);
    checked(operation, answer.result);
    return answer.u;
  }

  /** The same, without throwing. `domain` is the envelope's domain as Xen left it. */
  tryDomctl(
    command: keyof typeof DOMCTL,
    domid: Domid,
    u: Uint8Array = new Uint8Array(),
  ): { readonly result: number; readonly domain: number; readonly u: Uint8Array } {
    const { bytes, address } = this.#argument;
    Domctl.encodeInto({ cmd: DOMCTL[command], interface_version: this.interfaces.domctl, domain: domid, u }, bytes);
    const result = Number(this.port.call(HYPERCALL.domctl, address));
    const answer = Domctl.decode(bytes);
    return { result, domain: answer.domain, u: answer.u };
  }

  sysctl(operation: string, command: (typeof SYSCTL)[keyof typeof SYSCTL], u: Uint8Array): Uint8Array {
    const { bytes, address } = this.#argument;
    Sysctl.encodeInto({ cmd: command, interface_version: this.interfaces.sysctl, u }, bytes);
    checked(operation, Number(this.port.call(HYPERCALL.sysctl, address)));
    return Sysctl.decode(bytes).u;
  }

  [Symbol.dispose](): void {
    this.#argument[Symbol.dispose]();
    this.#buffer[Symbol.dispose]();
  }
}

/** The result, or a {@link XenError} for a negative one. */
export function checked(operation: string, result: number): number {
  if (result < 0) throw new XenError(operation, result);
  return result;
}

/** A bigint array's bytes, without a copy. */
export function bytesOf(array: BigUint64Array): Uint8Array {
  return new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
}
