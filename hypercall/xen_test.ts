import { deepEqual, equal, ok, throws } from "node:assert/strict";
import * as abi from "./abi/mod.ts";
import { type Address, DOM0, type Domid, type Gfn } from "./ports.ts";
import { openXen } from "./xen.ts";
import { type Call, FakePort } from "./xen_test_port.ts";

const DOMID = 7 as Domid;
const ESRCH = 3;

/** Answers domctls: `act` sees the envelope and may change it; its result is the hypercall's. */
function domctl(port: FakePort, act: (view: ReturnType<typeof abi.Domctl.view>) => number): void {
  port.handle = ({ op, args }: Call) => {
    equal(op, abi.HYPERCALL.domctl);
    const view = abi.Domctl.view(port.at(args[0] ?? 0n));
    return act(view);
  };
}

function gfnsFrom(first: bigint, count: number): BigUint64Array {
  return BigUint64Array.from({ length: count }, (_, index) => first + BigInt(index));
}

Deno.test("the interface version follows Xen's release; one that is not known is refused", () => {
  for (const [minor, version, size] of [[17, 0x15, 64], [18, 0x16, 64], [19, 0x17, 68], [22, 0x18, 68]] as const) {
    const port = new FakePort();
    port.version = 0x4_0000 | minor;
    using xen = openXen(port);
    deepEqual(xen.version, { major: 4, minor, extra: ".5+72" });
    const layout = size === 64 ? abi.CreateDomain15 : abi.CreateDomain17;
    domctl(port, (view) => {
      deepEqual([view.cmd, view.interface_version, view.domain], [abi.DOMCTL.createdomain, version, DOM0]);
      const { handle, flags, max_vcpus, max_grant_frames, grant_opts, arch } = layout.view(view.u);
      deepEqual([flags, max_vcpus, max_grant_frames, grant_opts], [3, 2, -1, 2]);
      deepEqual([handle[15], arch.emulation_flags, arch.misc_flags], [16, 1, 0]);
      view.domain = 31;
      return 0;
    });
    equal(xen.createDomain({ vcpus: 2, handle: Uint8Array.from({ length: 16 }, (_, index) => index + 1) }), 31);
  }
  const old = new FakePort();
  old.version = 0x0004_0010;
  throws(() => openXen(old), { code: "EOPNOTSUPP", message: /Xen 4\.16.*4\.17/ });
  equal(old.allocations, 0);
});

Deno.test("what is held is given back", () => {
  const port = new FakePort();
  openXen(port)[Symbol.dispose]();
  equal(port.allocations, 0);
});

Deno.test("an error names the operation and its subject, and has the code", () => {
  const port = new FakePort();
  using xen = openXen(port);
  port.handle = () => -ESRCH;
  throws(() => xen.pauseDomain(DOMID), { code: "ESRCH", message: "Cannot pause domain 7: ESRCH (no such domain)" });
  throws(() => xen.hvmParam(DOMID, 1), { message: /^Cannot read HVM parameter 1 of domain 7: / });
  throws(() => xen.nominate(DOMID, gfnsFrom(0n, 3)), { code: "ESRCH" });
  equal(xen.domainInfo(DOMID), undefined);
});

Deno.test("domain info: of another domain is none; flags come apart", () => {
  const port = new FakePort();
  using xen = openXen(port);
  let domain = 8;
  domctl(port, (view) => {
    view.u = abi.GetDomainInfo.encode({
      domain,
      flags: 2 | 4 | 8 | 256 | (2 << 16),
      paged_pages: 5n,
      shared_info_frame: (1n << 64n) - 1n,
      max_vcpu_id: 1,
    });
    return 0;
  });
  equal(xen.domainInfo(DOMID), undefined);
  domain = 7;
  const info = xen.domainInfo(DOMID);
  deepEqual(
    [info?.hvm, info?.shutdown, info?.paused, info?.hap, info?.dying, info?.shutdownReason, info?.pagedPages],
    [true, true, true, true, false, 2, 5n],
  );
  equal(info?.sharedInfoGfn, 0xffff_ffff_ffff_ffffn);
});

Deno.test("domains are listed in batches until there are no more", () => {
  const port = new FakePort();
  using xen = openXen(port);
  port.handle = ({ op, args }) => {
    equal(op, abi.HYPERCALL.sysctl);
    const sysctl = abi.Sysctl.view(port.at(args[0] ?? 0n));
    const list = abi.GetDomainInfoList.view(sysctl.u);
    const count = Math.min(list.max_domains, 1500 - list.first_domain);
    const memory = port.at(list.buffer);
    for (let index = 0; index < count; index++) {
      const info = { domain: list.first_domain + index };
      abi.GetDomainInfo.encodeInto(info, memory, index * abi.GetDomainInfo.size);
    }
    list.num_domains = count;
    return 0;
  };
  deepEqual(xen.listDomains().map(({ domid }) => domid), Array.from({ length: 1500 }, (_, index) => index));
});

Deno.test("the HVM context is asked for its size, then read; and set as it is", () => {
  const port = new FakePort();
  using xen = openXen(port);
  const context = crypto.getRandomValues(new Uint8Array(5000));
  const set: Uint8Array[] = [];
  domctl(port, (view) => {
    const { size, buffer } = abi.HvmContext.decode(view.u);
    if (view.cmd === abi.DOMCTL.sethvmcontext) set.push(port.at(buffer).slice(0, size));
    else if (buffer === 0n) view.u = abi.HvmContext.encode({ size: 6000 });
    else {
      port.at(buffer).set(context);
      view.u = abi.HvmContext.encode({ size: 5000, buffer });
    }
    return 0;
  });
  deepEqual(xen.hvmContext(DOMID), context);
  xen.setHvmContext(DOMID, context);
  deepEqual(set, [context]);
});

Deno.test("a context of a wild size is refused", () => {
  const port = new FakePort();
  using xen = openXen(port);
  domctl(port, (view) => {
    view.u = abi.HvmContext.encode({ size: 0xffff_fff0 });
    return 0;
  });
  throws(() => xen.hvmContext(DOMID), { code: "E2BIG" });
});

Deno.test("a CPU policy is read whole, set unchanged, and a refusal says where", () => {
  const port = new FakePort();
  using xen = openXen(port);
  const leaves = crypto.getRandomValues(new Uint8Array(3 * 24));
  const msrs = crypto.getRandomValues(new Uint8Array(2 * 16));
  domctl(port, (view) => {
    const policy = abi.CpuPolicyOp.view(view.u);
    if (policy.leaves === 0n) view.u = abi.CpuPolicyOp.encode({ nr_leaves: 10, nr_msrs: 5 });
    else if (view.cmd === abi.DOMCTL.get_cpu_policy) {
      deepEqual([policy.nr_leaves, policy.nr_msrs], [10, 5]);
      port.at(policy.leaves).set(leaves);
      port.at(policy.msrs).set(msrs);
      policy.nr_leaves = 3;
      policy.nr_msrs = 2;
    } else {
      deepEqual([policy.nr_leaves, policy.nr_msrs], [3, 2]);
      deepEqual(port.at(policy.leaves).slice(0, leaves.length), leaves);
      deepEqual(port.at(policy.msrs).slice(0, msrs.length), msrs);
      policy.err_leaf = 7;
      policy.err_msr = 0xce;
      return -22;
    }
    return 0;
  });
  const policy = xen.cpuPolicy(DOMID);
  deepEqual(policy, { leaves, msrs });
  throws(() => xen.setCpuPolicy(DOMID, policy), { code: "EINVAL", message: /leaf 0x7, subleaf 0x0, MSR 0xce/ });
});

Deno.test("extents are added in batches, and fewer than asked is an error", () => {
  const port = new FakePort();
  using xen = openXen(port);
  const seen: bigint[] = [];
  let room = Infinity;
  port.handle = ({ op, args }) => {
    deepEqual([op, args[0]], [abi.HYPERCALL.memory_op, BigInt(abi.XENMEM.populate_physmap)]);
    const { extent_start, nr_extents, extent_order, domid } = abi.MemoryReservation.decode(port.at(args[1] ?? 0n));
    deepEqual([extent_order, domid], [9, DOMID]);
    const gfns = new BigUint64Array(port.at(extent_start).slice(0, Number(nr_extents) * 8).buffer);
    const done = Math.min(gfns.length, room);
    room -= done;
    seen.push(...gfns.subarray(0, done));
    return done;
  };
  // A part of a larger array: its own bytes must go, from its own offset.
  const gfns = gfnsFrom(0n, 20_001).subarray(1);
  xen.populate(DOMID, gfns, 9);
  deepEqual(seen, [...gfns]);
  room = 10_000;
  throws(() => xen.populate(DOMID, gfns, 9), { code: "ENOMEM", message: /\(10000 were added\)/ });
});

Deno.test("page types come from bits 28 to 31", () => {
  const port = new FakePort();
  using xen = openXen(port);
  domctl(port, (view) => {
    const { num, array } = abi.GetPageFrameInfo3.decode(view.u);
    ok(num <= 1024n);
    const memory = port.at(array);
    const data = new DataView(memory.buffer, memory.byteOffset);
    for (let index = 0; index < Number(num); index++) {
      const gfn = data.getBigUint64(index * 8, true);
      data.setBigUint64(index * 8, (gfn % 16n) << 28n, true);
    }
    return 0;
  });
  deepEqual(
    xen.pageTypes(DOMID, gfnsFrom(5n, 3000)),
    Uint8Array.from({ length: 3000 }, (_, index) => (index + 5) % 16),
  );
});

Deno.test("the log of writes is the caller's own copy, and zero beyond what Xen has", () => {
  const port = new FakePort();
  using xen = openXen(port);
  domctl(port, (view) => {
    const shadow = abi.ShadowOp.decode(view.u);
    equal(shadow.op, abi.SHADOW_OP.peek);
    equal(shadow.pages, 100n);
    port.at(shadow.dirty_bitmap).set([0xff, 0x01]);
    return 0;
  });
  const first = xen.logDirtyPeek(DOMID, 100n);
  deepEqual(first, Uint8Array.of(0xff, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0));
  domctl(port, () => 0);
  deepEqual(xen.logDirtyPeek(DOMID, 100n), new Uint8Array(13));
  equal(first[0], 0xff);
});

/** Runs multicalls of paging operations; `act` decides each. */
function paging(port: FakePort, act: (op: number, gfn: bigint, buffer: bigint) => number): { lists: number[] } {
  const lists: number[] = [];
  port.handle = ({ op, args }) => {
    equal(op, abi.HYPERCALL.multicall);
    const count = Number(args[1]);
    lists.push(count);
    const memory = port.at(args[0] ?? 0n);
    for (let index = 0; index < count; index++) {
      const entry = abi.MulticallEntry.view(memory, index * abi.MulticallEntry.size);
      const [command, argument] = entry.args;
      deepEqual([entry.op, command], [BigInt(abi.HYPERCALL.memory_op), BigInt(abi.XENMEM.paging_op)]);
      const operation = abi.MemPagingOp.decode(port.at(argument ?? 0n));
      equal(operation.domain, DOMID);
      entry.result = BigInt(act(operation.op, operation.gfn, operation.buffer));
      // As Xen may leave an entry that it preempted (common/multicall.c).
      entry.op = 0xaaaan;
    }
    return 0;
  };
  return { lists };
}

Deno.test("pages are nominated 1024 a multicall, each with its own result", () => {
  const port = new FakePort();
  using xen = openXen(port);
  const seen: bigint[] = [];
  const { lists } = paging(port, (op, gfn) => {
    equal(op, abi.PAGING_OP.nominate);
    seen.push(gfn);
    return gfn % 1000n === 0n ? -16 : 0;
  });
  const gfns = gfnsFrom(0x1_0000_0000n, 2500);
  const results = xen.nominate(DOMID, gfns);
  deepEqual(seen, [...gfns]);
  deepEqual(lists, [1024, 1024, 452]);
  deepEqual(results, Int32Array.from(gfns, (gfn) => gfn % 1000n === 0n ? -16 : 0));
  deepEqual(xen.nominate(DOMID, new BigUint64Array(0)), new Int32Array(0));
});

Deno.test("a page goes out by two operations in order, and shows the first that failed", () => {
  const port = new FakePort();
  using xen = openXen(port);
  const seen: string[] = [];
  const { lists } = paging(port, (op, gfn) => {
    seen.push(`${op}:${gfn}`);
    if (gfn === 1n) return op === abi.PAGING_OP.nominate ? -12 : -16;
    return gfn === 2n && op === abi.PAGING_OP.evict ? -16 : 0;
  });
  const results = xen.pageOut(DOMID, gfnsFrom(0n, 600));
  deepEqual([...results.subarray(0, 4)], [0, -12, -16, 0]);
  deepEqual(lists, [1024, 176]);
  deepEqual(seen.slice(0, 4), ["0:0", "1:0", "0:1", "1:1"]);
});

Deno.test("pages come in from the addresses given", () => {
  const port = new FakePort();
  using xen = openXen(port);
  const seen: [bigint, bigint][] = [];
  paging(port, (op, gfn, buffer) => {
    equal(op, abi.PAGING_OP.prep);
    seen.push([gfn, buffer]);
    return gfn === 3n ? -2 : 0;
  });
  const buffers = BigUint64Array.of(0x7fff_0000_1000n, 0n, 0x7fff_0000_2000n);
  deepEqual(xen.prepMany(DOMID, BigUint64Array.of(1n, 2n, 3n), buffers), Int32Array.of(0, 0, -2));
  deepEqual(seen, [[1n, 0x7fff_0000_1000n], [2n, 0n], [3n, 0x7fff_0000_2000n]]);
  throws(() => xen.prepMany(DOMID, gfnsFrom(0n, 2), buffers), RangeError);
  port.handle = ({ op, args }) => {
    equal(op, abi.HYPERCALL.memory_op);
    deepEqual(abi.MemPagingOp.decode(port.at(args[1] ?? 0n)), { op: 2, domain: 7, buffer: 0x1000n, gfn: 9n });
    return -2;
  };
  equal(xen.prep(DOMID, 9n as Gfn, 0x1000n as Address), -2);
});

Deno.test("the paging ring, event channels, parameters and memory types", () => {
  const port = new FakePort();
  using xen = openXen(port);
  domctl(port, (view) => {
    deepEqual(abi.VmEventOp.decode(view.u), { op: view.domain === 7 ? 0 : 1, mode: 1, port: 0 });
    view.u = abi.VmEventOp.encode({ port: 99 });
    return 0;
  });
  equal(xen.pagingEnable(DOMID), 99);
  xen.pagingDisable(8 as Domid);

  port.handle = ({ op, args }) => {
    const bytes = port.at(args[1] ?? 0n);
    if (op === abi.HYPERCALL.event_channel_op) {
      const view = abi.EvtchnAllocUnbound.view(bytes);
      deepEqual([view.dom, view.remote_dom], [7, 0]);
      view.port = 12;
    } else {
      const view = abi.HvmParam.view(bytes);
      if (args[0] === 1n) view.value = 0xfeffcn;
      else deepEqual([view.domid, view.index, view.value], [7, 2, 5n]);
    }
    return 0;
  };
  equal(xen.allocateUnbound(DOMID, DOM0), 12);
  equal(xen.hvmParam(DOMID, 1), 0xfeffcn);
  xen.setHvmParam(DOMID, 2, 5n);

  port.deviceModelResult = -11;
  equal(xen.setMemoryType(DOMID, 0, 0x1_2345_6789n as Gfn, 3), -11);
  const [operation] = port.deviceModelOps;
  deepEqual(operation && abi.DmOpSetMemType.decode(operation.buffer), {
    op: 12,
    pad: 0,
    nr: 3,
    mem_type: 0,
    pad2: 0,
    first_pfn: 0x1_2345_6789n,
  });
});

Deno.test("sizes and limits of a domain", () => {
  const port = new FakePort();
  using xen = openXen(port);
  const seen: [number, bigint][] = [];
  domctl(port, (view) => {
    seen.push([view.cmd, new DataView(view.u.buffer, view.u.byteOffset).getBigUint64(0, true)]);
    return 0;
  });
  xen.setMaxVcpus(DOMID, 2);
  xen.setMaxMemory(DOMID, 131_072n);
  xen.setPagingMempool(DOMID, 4097n);
  xen.subscribeSuspend(DOMID, 6 as ReturnType<typeof xen.allocateUnbound>);
  deepEqual(seen, [
    [abi.DOMCTL.max_vcpus, 2n],
    [abi.DOMCTL.max_mem, 131_072n],
    [abi.DOMCTL.set_paging_mempool_size, 8192n],
    [abi.DOMCTL.subscribe, 6n],
  ]);
});

Deno.test("host: capabilities and memory", () => {
  const port = new FakePort();
  using xen = openXen(port);
  ok(xen.capabilities().split(" ").includes("hvm-3.0-x86_64"));
  port.handle = ({ args }) => {
    const view = abi.Sysctl.view(port.at(args[0] ?? 0n));
    view.u = abi.PhysInfo.encode({
      nr_cpus: 4,
      cpu_khz: 2_000_000,
      capabilities: 1 | 8,
      total_pages: 9n,
      free_pages: 8n,
    });
    return 0;
  };
  deepEqual(xen.physicalInfo(), {
    hvm: true,
    hap: true,
    cpus: 4,
    cpuKhz: 2_000_000,
    totalPages: 9n,
    freePages: 8n,
  });
});
