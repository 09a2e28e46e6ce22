/** Puts a fork into a shell and lets it run. */
import type { Domid } from "../../hypercall/ports.ts";
import type { Descriptor } from "./descriptor.ts";
import { domainPath, guestOwned } from "./domain_tree.ts";
import { HvmParam } from "./hvm_params.ts";
import type { ShellPorts } from "./shell.ts";

/** Nodes below the clone's own path, by path. They are the guest's own. */
export type GuestNodes = Readonly<Record<string, string>>;

/** When it resolves the clone runs. The caller ends the domain if this rejects. */
export async function startClone(
  ports: ShellPorts,
  domid: Domid,
  descriptor: Descriptor,
  nodes: GuestNodes,
): Promise<void> {
  const { xen, foreignMemory, store, memory } = ports;
  await memory.attachSource(domid, descriptor.snapshot);
  await memory.push(domid, descriptor.hot);
  const identPt = descriptor.memory.frames.get(HvmParam.identPt);
  if (identPt !== undefined && descriptor.identPt.length > 0) {
    using mapping = foreignMemory.map(domid, BigUint64Array.of(identPt), { write: true });
    if (mapping.errors[0] !== 0) throw new Error(`domain ${domid} has no identity page table`);
    mapping.bytes.set(descriptor.identPt);
  }
  for (const [index, value] of descriptor.params) xen.setHvmParam(domid, index, value);
  xen.setTscInfo(domid, descriptor.tsc);
  xen.setHvmContext(domid, descriptor.context);
  const root = domainPath(domid);
  const permissions = guestOwned(domid);
  await Promise.all(
    Object.entries(nodes).flatMap(([path, value]) => [
      store.write(`${root}/${path}`, value),
      store.setPermissions(`${root}/${path}`, permissions),
    ]),
  );
  xen.unpauseDomain(domid);
}
