/** Domains for the tests of the simulator, made through the typed layer. */
import assert from "node:assert/strict";
import { XenError } from "../../hypercall/errors.ts";
import { type Domid, PAGE_BYTES } from "../../hypercall/ports.ts";
import { PagingRing } from "../../hypercall/ring.ts";
import { openXen } from "../../hypercall/xen.ts";
import type { Xen } from "../../hypercall/xen_api.ts";
import { openSimMachine, type SimMachine } from "./machine.ts";
import { SimXen, type SimXenOptions } from "./sim_xen.ts";

export const RING_GFN = 0xfeff8n;
export const HANDLE = new Uint8Array(16).fill(7);

export function open(options: SimXenOptions = {}) {
  const sim = new SimXen(options);
  const machine = openSimMachine(sim);
  return { sim, machine, xen: openXen(machine.hypercalls) };
}

export function gfns(first: number, count: number): BigUint64Array {
  return BigUint64Array.from({ length: count }, (_, index) => BigInt(first + index));
}

export function makeDomain(xen: Xen, pages = 512): Domid {
  const domid = xen.createDomain({ vcpus: 2, handle: HANDLE });
  xen.setMaxVcpus(domid, 2);
  xen.setMaxMemory(domid, BigInt(pages + 16) * 4n);
  xen.populate(domid, gfns(0, pages), 0);
  return domid;
}

export function throwsCode(code: string, body: () => unknown): void {
  assert.throws(body, (error: unknown) => error instanceof XenError && error.code === code);
}

/** A domain whose ring is open, as the program opens it. */
export function makePaged(pages = 512, options: SimXenOptions = {}) {
  const parts = open(options);
  const { machine, xen } = parts;
  const domid = makeDomain(xen, pages);
  xen.setHvmParam(domid, 27, RING_GFN);
  xen.populate(domid, BigUint64Array.of(RING_GFN), 0);
  const mapping = machine.map(domid, BigUint64Array.of(RING_GFN), { write: true });
  const ring = new PagingRing(mapping.bytes);
  ring.initialise();
  const channels = machine.openEventChannels();
  const port = channels.bindInterdomain(domid, xen.pagingEnable(domid));
  xen.decreaseReservation(domid, BigUint64Array.of(RING_GFN));
  channels.pending();
  channels.unmask(port);
  const domain = parts.sim.domain(domid);
  const vcpu = domain.vcpus[0];
  const second = domain.vcpus[1];
  assert(vcpu !== undefined && second !== undefined);
  vcpu.down = false;
  second.down = false;
  return { ...parts, domid, ring, mapping, channels, port, domain, vcpu, second };
}

export function prepFrom(machine: SimMachine, byte: number) {
  const memory = machine.allocate(PAGE_BYTES);
  memory.bytes.fill(byte);
  return memory;
}
