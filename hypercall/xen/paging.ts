/** Memory paging: a domain's ring, and nominate, evict and prep, one page or a batch through one multicall. */
import {
  HYPERCALL,
  MemPagingOp,
  MulticallEntry,
  PAGING_OP,
  VM_EVENT_MODE,
  VM_EVENT_OP,
  VmEventOp,
  XENMEM,
} from "../abi/mod.ts";
import { type Domid, type PinnedMemory, type Port } from "../ports.ts";
import type { Xen } from "../xen_api.ts";
import { checked, type Invoker } from "./invoke.ts";

/** Entries of one multicall: one entry and its operation are 88 bytes, and Xen preempts a long one by itself. */
const BATCH_ENTRIES = 1024;

type PagingCalls = Pick<
  Xen,
  "pagingEnable" | "pagingDisable" | "nominate" | "pageOut" | "prep" | "prepMany"
>;

export function pagingCalls(invoker: Invoker, batch: PagingBatch): PagingCalls {
  function vmEvent(operation: string, domid: Domid, op: number): Port {
    const u = VmEventOp.encode({ op, mode: VM_EVENT_MODE.paging });
    return VmEventOp.decode(invoker.domctl(operation, "vm_event_op", domid, u)).port as Port;
  }

  return {
    pagingEnable: (domid) => vmEvent(`enable the paging ring of domain ${domid}`, domid, VM_EVENT_OP.enable),
    pagingDisable: (domid) => void vmEvent(`disable the paging ring of domain ${domid}`, domid, VM_EVENT_OP.disable),

    nominate: (domid, gfns) => batch.run(domid, [PAGING_OP.nominate], gfns),
    pageOut: (domid, gfns) => batch.run(domid, [PAGING_OP.nominate, PAGING_OP.evict], gfns),

    prep(domid, gfn, buffer) {
      return batch.runOne(domid, PAGING_OP.prep, gfn, buffer);
    },

    prepMany(domid, gfns, buffers) {
      if (buffers.length !== gfns.length) throw new RangeError("one buffer a page is needed");
      return batch.run(domid, [PAGING_OP.prep], gfns, buffers);
    },
  };
}

/** A multicall's list and its operations, in pinned memory of their own, used again for each batch. */
export class PagingBatch implements Disposable {
  readonly #invoker: Invoker;
  readonly #list: PinnedMemory;
  readonly #operations: PinnedMemory;
  readonly #listView: DataView;
  readonly #operationView: DataView;

  constructor(invoker: Invoker) {
    using stack = new DisposableStack();
    this.#invoker = invoker;
    this.#list = stack.use(invoker.port.allocate(BATCH_ENTRIES * MulticallEntry.size));
    this.#operations = stack.use(invoker.port.allocate(BATCH_ENTRIES * MemPagingOp.size));
    this.#listView = dataView(this.#list);
    this.#operationView = dataView(this.#operations);
    stack.move();
  }

  /** Each operation of `ops` on each page, in order. Per page 0, or the first -errno of its operations. */
  run(domid: Domid, ops: readonly number[], gfns: BigUint64Array, buffers?: BigUint64Array): Int32Array {
    const results = new Int32Array(gfns.length);
    const pages = Math.floor(BATCH_ENTRIES / ops.length);
    const list = this.#listView;
    for (let start = 0; start < gfns.length; start += pages) {
      const end = Math.min(start + pages, gfns.length);
      const entries = this.#fill(domid, ops, gfns.subarray(start, end), buffers?.subarray(start, end));
      const result = this.#invoker.port.call(HYPERCALL.multicall, this.#list.address, BigInt(entries));
      checked(`work on ${end - start} pages of domain ${domid}`, Number(result));
      for (let entry = 0; entry < entries; entry++) {
        const page = start + Math.floor(entry / ops.length);
        const status = Number(list.getBigInt64(entry * MulticallEntry.size + MulticallEntry.offsets.result, true));
        if (status < 0 && results[page] === 0) results[page] = status;
      }
    }
    return results;
  }

  /** One operation, without a multicall: 0 or -errno. */
  runOne(domid: Domid, op: number, gfn: bigint, buffer: bigint): number {
    writeOperation(this.#operationView, 0, domid, op, gfn, buffer);
    const { address } = this.#operations;
    return Math.min(0, Number(this.#invoker.port.call(HYPERCALL.memory_op, BigInt(XENMEM.paging_op), address)));
  }

  /** Writes whole entries each time: Xen may change one that it preempts (common/multicall.c). */
  #fill(domid: Domid, ops: readonly number[], gfns: BigUint64Array, buffers?: BigUint64Array): number {
    const list = this.#listView;
    let entry = 0;
    for (let page = 0; page < gfns.length; page++) {
      for (const op of ops) {
        const at = entry * MemPagingOp.size;
        writeOperation(this.#operationView, at, domid, op, gfns[page] ?? 0n, buffers?.[page] ?? 0n);
        const call = entry * MulticallEntry.size;
        list.setBigUint64(call + MulticallEntry.offsets.op, BigInt(HYPERCALL.memory_op), true);
        list.setBigUint64(call + MulticallEntry.offsets.result, 0n, true);
        list.setBigUint64(call + MulticallEntry.offsets.args, BigInt(XENMEM.paging_op), true);
        list.setBigUint64(call + MulticallEntry.offsets.args + 8, this.#operations.address + BigInt(at), true);
        entry++;
      }
    }
    return entry;
  }

  [Symbol.dispose](): void {
    this.#list[Symbol.dispose]();
    this.#operations[Symbol.dispose]();
  }
}

/** By offset, without the struct's encoder: this runs once or twice for every page of a domain. */
function writeOperation(view: DataView, at: number, domid: Domid, op: number, gfn: bigint, buffer: bigint): void {
  view.setUint8(at + MemPagingOp.offsets.op, op);
  view.setUint16(at + MemPagingOp.offsets.domain, domid, true);
  view.setBigUint64(at + MemPagingOp.offsets.buffer, buffer, true);
  view.setBigUint64(at + MemPagingOp.offsets.gfn, gfn, true);
}

function dataView({ bytes }: PinnedMemory): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}
