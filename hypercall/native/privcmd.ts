/** Hypercalls and foreign memory through `/dev/xen/privcmd`, pinned memory from `/dev/xen/hypercall`. */
import {
  PRIVCMD,
  PrivcmdDmOp,
  PrivcmdDmOpBuf,
  PrivcmdHypercall,
  PrivcmdMmapBatchV2,
  PrivcmdMmapResource,
} from "../abi/mod.ts";
import { XenError } from "../errors.ts";
import {
  type Domid,
  type ForeignMapping,
  type ForeignMemoryPort,
  type HypercallPort,
  PAGE_BYTES,
  type PinnedMemory,
} from "../ports.ts";
import { addressOf, failedWith, type Libc, O_RDWR } from "./libc.ts";
import { Region } from "./region.ts";

const HINT = "is this a Xen dom0, and is this root?";
/** 64 GiB in one mapping. */
const FRAMES_MAX = 1 << 24;
/** dm_op_buf_max_size of the kernel's module. */
const DM_OP_BYTES_MAX = 4096;

export class Privcmd implements HypercallPort, ForeignMemoryPort, Disposable {
  readonly #libc: Libc;
  readonly #privcmd: number;
  readonly #hypercall: number;
  readonly #call = new Uint8Array(PrivcmdHypercall.size);
  readonly #callView = new DataView(this.#call.buffer);
  /** Lists for the kernel to read and write: held here so that they stay where their address says. */
  #scratch = new Uint8Array(2 * DM_OP_BYTES_MAX);

  constructor(libc: Libc) {
    this.#libc = libc;
    this.#privcmd = libc.openFile("/dev/xen/privcmd", O_RDWR, HINT);
    try {
      this.#hypercall = libc.openFile("/dev/xen/hypercall", O_RDWR, HINT);
    } catch (error) {
      libc.close(this.#privcmd);
      throw error;
    }
  }

  allocate(byteLength: number): PinnedMemory {
    const operation = `pin ${byteLength} bytes of memory`;
    const region = new Region(this.#libc, operation, { fd: this.#hypercall, byteLength, write: true });
    region.bytes.fill(0);
    return region;
  }

  call(op: number, ...args: bigint[]): bigint {
    this.#callView.setBigUint64(PrivcmdHypercall.offsets.op, BigInt(op), true);
    for (let index = 0; index < 5; index++) {
      this.#callView.setBigUint64(PrivcmdHypercall.offsets.arg + index * 8, args[index] ?? 0n, true);
    }
    return this.#libc.longIoctl(this.#privcmd, PRIVCMD.HYPERCALL, this.#call);
  }

  deviceModelOp(domid: Domid, buffer: Uint8Array): number {
    if (buffer.byteLength > DM_OP_BYTES_MAX) throw new RangeError(`a dm_op of ${buffer.byteLength} bytes is too large`);
    const scratch = this.#scratch;
    const address = addressOf(scratch);
    scratch.set(buffer, PAGE_BYTES);
    const list = { uptr: address + BigInt(PAGE_BYTES), size: BigInt(buffer.byteLength) };
    PrivcmdDmOpBuf.encodeInto(list, scratch);
    const argument = PrivcmdDmOp.encode({ dom: domid, num: 1, ubufs: address });
    return this.#libc.ioctl(this.#privcmd, PRIVCMD.DM_OP, argument);
  }

  map(domid: Domid, gfns: BigUint64Array, { write }: { readonly write: boolean }): ForeignMapping {
    const frames = gfns.length;
    const operation = `map ${frames} pages of domain ${domid}`;
    if (frames > FRAMES_MAX) throw new RangeError(`cannot ${operation}: more than ${FRAMES_MAX}`);
    const region = new Region(this.#libc, operation, { fd: this.#privcmd, byteLength: frames * PAGE_BYTES, write });
    const scratch = this.#grow(frames * 12);
    const list = addressOf(scratch);
    new BigUint64Array(scratch.buffer, 0, frames).set(gfns);
    const errors = new Int32Array(scratch.buffer, frames * 8, frames);
    errors.fill(0);
    const argument = PrivcmdMmapBatchV2.encode({
      num: frames,
      dom: domid,
      addr: region.address,
      arr: list,
      err: list + BigInt(frames * 8),
    });
    const result = this.#libc.ioctl(this.#privcmd, PRIVCMD.MMAPBATCH_V2, argument);
    // ENOENT only says that some frame is paged out, and not reliably: the list tells (arch/x86/xen/mmu_pv.c).
    if (result < 0 && !failedWith(result, "ENOENT")) {
      region[Symbol.dispose]();
      throw new XenError(operation, result);
    }
    return foreignMapping(region, errors.slice());
  }

  mapResource(domid: Domid, type: number, id: number, firstFrame: number, frames: number): ForeignMapping {
    const operation = `map ${frames} frames of resource ${type} of domain ${domid}`;
    const byteLength = frames * PAGE_BYTES;
    const region = new Region(this.#libc, operation, { fd: this.#privcmd, byteLength, write: true });
    const argument = PrivcmdMmapResource.encode({
      dom: domid,
      type,
      id,
      idx: firstFrame,
      num: BigInt(frames),
      addr: region.address,
    });
    const result = this.#libc.ioctl(this.#privcmd, PRIVCMD.MMAP_RESOURCE, argument);
    if (result < 0) {
      region[Symbol.dispose]();
      throw new XenError(operation, result);
    }
    return foreignMapping(region, new Int32Array(frames));
  }

  #grow(byteLength: number): Uint8Array<ArrayBuffer> {
    if (byteLength > this.#scratch.byteLength) this.#scratch = new Uint8Array(byteLength * 2);
    return this.#scratch;
  }

  /** Memory and mappings made through it stay. */
  [Symbol.dispose](): void {
    this.#libc.close(this.#privcmd);
    this.#libc.close(this.#hypercall);
  }
}

function foreignMapping(region: Region, errors: Int32Array): ForeignMapping {
  return {
    address: region.address,
    bytes: region.bytes,
    errors,
    [Symbol.dispose]: () => region[Symbol.dispose](),
  };
}
