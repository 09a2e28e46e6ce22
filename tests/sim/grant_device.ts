/** `/dev/xen/gntdev` of a simulated process. The kernel's long retries of GNTST_eagain are left to the caller: nothing blocks here. */
import { GNTST } from "../../hypercall/abi/mod.ts";
import { errno, XenError } from "../../hypercall/errors.ts";
import {
  type CopyEnd,
  type CopySegment,
  type Domid,
  type GrantPort,
  PAGE_BYTES,
  type PinnedMemory,
} from "../../hypercall/ports.ts";
import type { Granted } from "./grant_table.ts";
import type { SimMachine } from "./machine.ts";
import { mapFrames } from "./process_memory.ts";

export class SimGrants implements GrantPort {
  readonly #machine: SimMachine;

  constructor(machine: SimMachine) {
    this.#machine = machine;
  }

  copy(segments: readonly CopySegment[]): Int16Array {
    const failed = (code: Parameters<typeof errno>[0]): never => {
      throw new XenError(`copy ${segments.length} segments by grant`, errno(code));
    };
    const copyAll = () => Int16Array.from(segments, (segment) => this.#copyOne(segment));
    return this.#machine.step("grant.copy", copyAll, failed);
  }

  #copyOne({ source, dest, byteLength }: CopySegment): number {
    const from = this.#bytesOf(source, byteLength);
    if (typeof from === "number") return from;
    const content = from.slice();
    if (!("ref" in dest)) {
      const to = this.#machine.space.resolve(dest.address, byteLength);
      // The real device refuses the whole call for an address of its own process that is not there.
      if (to === undefined) throw new XenError("copy by grant", errno("EFAULT"));
      to.set(content);
      return GNTST.okay;
    }
    if (dest.offset + byteLength > PAGE_BYTES) return GNTST.general_error;
    const granted = this.#resolve(dest.domid, dest.ref, true);
    if (!("frame" in granted)) return granted.status;
    this.#machine.xen.domain(dest.domid).memory.write(granted.gfn, granted.frame, dest.offset, content);
    return GNTST.okay;
  }

  /** Bytes to read, or a status. */
  #bytesOf(end: CopyEnd, byteLength: number): Uint8Array | number {
    if (!("ref" in end)) {
      const bytes = this.#machine.space.resolve(end.address, byteLength);
      if (bytes === undefined) throw new XenError("copy by grant", errno("EFAULT"));
      return bytes;
    }
    if (end.offset + byteLength > PAGE_BYTES) return GNTST.general_error;
    const granted = this.#resolve(end.domid, end.ref, false);
    return "frame" in granted ? granted.frame.bytes.subarray(end.offset, end.offset + byteLength) : granted.status;
  }

  #resolve(domid: Domid, reference: number, write: boolean): Granted {
    const domain = this.#machine.xen.find(domid);
    if (domain === undefined || domain.dying) return { status: GNTST.bad_domain };
    return domain.grants.resolve(reference, 0, write);
  }

  map(domid: Domid, refs: readonly number[], { write }: { readonly write: boolean }): PinnedMemory {
    const operation = `map ${refs.length} grants of domain ${domid}`;
    const failed = (code: Parameters<typeof errno>[0]): never => {
      throw new XenError(operation, errno(code));
    };
    return this.#machine.step(
      "grant.map",
      () => {
        const granted = refs.map((reference) => this.#resolve(domid, reference, write));
        const frames = granted.map((one) => "frame" in one ? one.frame : undefined);
        if (granted.some(({ status }) => status === GNTST.eagain)) return failed("EAGAIN");
        if (frames.includes(undefined)) return failed("EINVAL");
        const { address, bytes, end } = mapFrames(this.#machine, frames, write);
        return { address, bytes, [Symbol.dispose]: end };
      },
      failed,
    );
  }

  /** Mappings made through it stay. */
  [Symbol.dispose](): void {}
}
