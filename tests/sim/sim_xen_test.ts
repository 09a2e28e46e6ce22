import assert from "node:assert/strict";
import { errno } from "../../hypercall/errors.ts";
import { DOM0, type Domid, PAGE_BYTES, type Port } from "../../hypercall/ports.ts";
import { openXen } from "../../hypercall/xen.ts";
import { ProcessKilled } from "./errno.ts";
import { Faults } from "./faults.ts";
import { gfns, HANDLE, makeDomain, open, throwsCode } from "./fixture.ts";
import { openSimMachine } from "./machine.ts";
import { SimXen } from "./sim_xen.ts";

for (const version of ["4.17", "4.19", "4.21"] as const) {
  Deno.test(`the typed layer makes, runs and ends a domain on Xen ${version}`, () => {
    const { sim, xen } = open({ version });
    assert.equal(`${xen.version.major}.${xen.version.minor}`, version);
    const free = xen.physicalInfo().freePages;
    const domid = makeDomain(xen, 64);
    assert.equal(xen.domainInfo(domid)?.totalPages, 64n);
    assert.equal(xen.domainInfo(domid)?.paused, true);
    assert.deepEqual(xen.domainInfo(domid)?.handle, HANDLE);
    xen.unpauseDomain(domid);
    assert.equal(xen.domainInfo(domid)?.paused, false);
    throwsCode("EINVAL", () => xen.unpauseDomain(domid));
    throwsCode("EEXIST", () => xen.setCpuPolicy(domid, xen.cpuPolicy(domid)));
    xen.destroyDomain(domid);
    assert.equal(xen.domainInfo(domid), undefined);
    assert.equal(xen.physicalInfo().freePages, free);
    assert.equal(sim.domains().length, 0);
  });
}

Deno.test("a wrong interface version is EACCES", () => {
  const { machine } = open({ version: "4.17" });
  const memory = machine.allocate(PAGE_BYTES);
  new DataView(memory.bytes.buffer).setUint32(4, 0x17, true);
  assert.equal(machine.call(36, memory.address), BigInt(-errno("EACCES")));
});

Deno.test("an address that is not mapped is EFAULT, and a stale one too", () => {
  const { machine } = open();
  const memory = machine.allocate(PAGE_BYTES);
  const stale = memory.address;
  memory[Symbol.dispose]();
  assert.equal(machine.call(36, stale), BigInt(-errno("EFAULT")));
  assert.equal(memory.bytes.byteLength, 0);
});

Deno.test("populate stops where the domain's limit or the host's memory ends", () => {
  const { xen } = open({ memoryPages: 400 });
  const domid = xen.createDomain({ vcpus: 1, handle: HANDLE });
  xen.setMaxMemory(domid, 100n * 4n);
  throwsCode("ENOMEM", () => xen.populate(domid, gfns(0, 101), 0));
  assert.equal(xen.domainInfo(domid)?.totalPages, 100n);
  xen.setMaxMemory(domid, 1000n * 4n);
  throwsCode("ENOMEM", () => xen.populate(domid, gfns(100, 300), 0));
  assert.equal(xen.physicalInfo().freePages, 0n);
});

Deno.test("a mapping of neighbours is live, and one of scattered pages is settled at each call", () => {
  const { machine, xen } = open();
  const domid = makeDomain(xen);
  using neighbours = machine.map(domid, gfns(10, 4), { write: true });
  using scattered = machine.map(domid, BigUint64Array.of(13n, 10n, 99n), { write: true });
  neighbours.bytes[3 * PAGE_BYTES] = 1;
  scattered.bytes[PAGE_BYTES + 5] = 2;
  machine.map(domid, gfns(0, 1), { write: false })[Symbol.dispose]();
  assert.equal(scattered.bytes[0], 1);
  assert.equal(neighbours.bytes[5], 2);
});

Deno.test("frames without a page are errors in a mapping, and cannot be named by address", () => {
  const { machine, xen } = open();
  const domid = makeDomain(xen, 4);
  using mapping = machine.map(domid, gfns(2, 4), { write: false });
  assert.deepEqual([...mapping.errors], [0, 0, -errno("EINVAL"), -errno("EINVAL")]);
  assert.notEqual(machine.space.resolve(mapping.address, 2 * PAGE_BYTES), undefined);
  assert.equal(machine.space.resolve(mapping.address, 3 * PAGE_BYTES), undefined);
});

Deno.test("a dead domain stays listed while its pages are mapped", () => {
  const { machine, xen } = open();
  const domid = makeDomain(xen, 4);
  const mapping = machine.map(domid, gfns(0, 1), { write: false });
  xen.destroyDomain(domid);
  assert.equal(xen.domainInfo(domid)?.dying, true);
  mapping[Symbol.dispose]();
  assert.equal(xen.domainInfo(domid), undefined);
});

Deno.test("log-dirty: enabling twice is EINVAL; only writes since are in the bitmap", () => {
  const { xen, domain, vcpu } = (() => {
    const parts = open();
    const domid = makeDomain(parts.xen, 64);
    const domain = parts.sim.domain(domid);
    const vcpu = domain.vcpus[0];
    assert(vcpu !== undefined);
    vcpu.down = false;
    return { ...parts, domain, vcpu };
  })();
  const domid = domain.domid as Domid;
  xen.unpauseDomain(domid);
  domain.access(vcpu, 3, "write");
  xen.logDirtyEnable(domid);
  throwsCode("EINVAL", () => xen.logDirtyEnable(domid));
  domain.access(vcpu, 4, "read");
  domain.access(vcpu, 9, "write");
  assert.deepEqual([...xen.logDirtyPeek(domid, 16n)], [0, 0b10]);
  xen.logDirtyOff(domid);
  xen.logDirtyOff(domid);
});

Deno.test("parameters: set-once ones are EEXIST, dead ones EINVAL", () => {
  const { xen } = open();
  const domid = makeDomain(xen, 4);
  xen.setHvmParam(domid, 5, 0xfeffdn);
  xen.setHvmParam(domid, 5, 0xfeffdn);
  throwsCode("EEXIST", () => xen.setHvmParam(domid, 5, 1n));
  throwsCode("EINVAL", () => xen.setHvmParam(domid, 13, 1n));
  throwsCode("EINVAL", () => xen.setHvmParam(domid, 39, 1n));
  assert.equal(xen.hvmParam(domid, 5), 0xfeffdn);
});

Deno.test("a suspend signals the subscribed port instead of VIRQ_DOM_EXC", () => {
  const { machine, sim, xen } = open();
  const domid = makeDomain(xen, 4);
  let exceptions = 0;
  using _listener = sim.onDomainException(() => exceptions++);
  using channels = machine.openEventChannels();
  using poller = machine.openPoller();
  poller.add(channels.fd);
  const port = xen.allocateUnbound(domid, DOM0);
  const local = channels.bindInterdomain(domid, port);
  assert.deepEqual(poller.wait(-1), [channels.fd], "it fires once when it is bound");
  channels.pending();
  channels.unmask(local);
  xen.subscribeSuspend(domid, port);
  xen.shutdownDomain(domid, 2);
  assert.deepEqual(channels.pending(), [local]);
  assert.equal(exceptions, 0);
  xen.resumeDomain(domid);
  assert.equal(xen.domainInfo(domid)?.shutdown, false);
  xen.shutdownDomain(domid, 3);
  assert.equal(exceptions, 1);
});

Deno.test("event channels: a port that fired is masked until it is unmasked; others' ports are EINVAL", () => {
  const { machine, xen } = open();
  const domid = makeDomain(xen, 4);
  using channels = machine.openEventChannels();
  throwsCode("EINVAL", () => channels.bindInterdomain(domid, 99 as Port));
  const remote = xen.allocateUnbound(domid, DOM0);
  const local = channels.bindInterdomain(domid, remote);
  throwsCode("EINVAL", () => channels.bindInterdomain(domid, remote));
  machine.xen.eventChannels.send(domid, remote);
  assert.deepEqual(channels.pending(), [local]);
  assert.deepEqual(channels.pending(), []);
  channels.unmask(local);
  assert.deepEqual(channels.pending(), [local], "what came while it was masked is not lost");
});

Deno.test("an HVM context goes from one domain to another; a broken one is refused", () => {
  const { sim, xen } = open({ version: "4.21" });
  const first = makeDomain(xen, 4);
  const vcpu = sim.domain(first).vcpus[0];
  assert(vcpu !== undefined);
  vcpu.down = false;
  vcpu.cpu.cr0 = 0x11n;
  vcpu.cpu.rip = 0xffffffff81000000n;
  const context = xen.hvmContext(first);
  const second = makeDomain(xen, 4);
  xen.setHvmContext(second, context);
  assert.deepEqual(xen.hvmContext(second), context);
  assert.equal(xen.domainInfo(second)?.onlineVcpus, 1, "a vCPU without a record is down");
  throwsCode("ENODATA", () => xen.setHvmContext(second, context.subarray(0, context.byteLength - 8)));
  const magic = context.slice();
  magic[8] = 0;
  throwsCode("EINVAL", () => xen.setHvmContext(second, magic));
  const noEt = context.slice();
  noEt[8 + 24 + 8 + 656] = 1;
  throwsCode("EINVAL", () => xen.setHvmContext(second, noEt));
});

Deno.test("vCPU context: rax is edited in place", () => {
  const { sim, xen } = open();
  const domid = makeDomain(xen, 4);
  throwsCode("ENODATA", () => xen.vcpuContext(domid, 0));
  const vcpu = sim.domain(domid).vcpus[0];
  assert(vcpu !== undefined);
  vcpu.initialised = true;
  vcpu.down = false;
  const context = xen.vcpuContext(domid, 0);
  new DataView(context.buffer).setBigUint64(600, 1n, true);
  xen.setVcpuContext(domid, 0, context);
  assert.equal(vcpu.cpu.rax, 1n);
  assert.equal(vcpu.down, false);
});

Deno.test("faults: a killed process loses its mappings and ports, and reaches nothing any more", () => {
  const sim = new SimXen();
  const faults = new Faults();
  const machine = openSimMachine(sim, faults);
  const xen = openXen(machine.hypercalls);
  const domid = makeDomain(xen, 4);
  machine.map(domid, gfns(0, 1), { write: false });
  const channels = machine.openEventChannels();
  channels.bindInterdomain(domid, xen.allocateUnbound(domid, DOM0));
  const next = faults.steps + 1;
  faults.onStep = ({ number }) => number === next ? "kill" : undefined;
  assert.throws(() => xen.destroyDomain(domid), ProcessKilled);
  assert.throws(() => xen.pauseDomain(domid), ProcessKilled);
  assert.equal(sim.domain(domid).dying, false);
  assert.deepEqual(sim.eventChannels.openPorts(0), []);
  channels[Symbol.dispose]();
  openXen(openSimMachine(sim).hypercalls).destroyDomain(domid);
  assert.equal(sim.domains().length, 0);
});
