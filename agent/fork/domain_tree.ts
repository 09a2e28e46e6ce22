import { DOM0, type Domid } from "../../hypercall/ports.ts";
import type { StoreNode, StorePermission } from "./store.ts";

/** What a clone's nodes in xenstore are made of. */
export interface DomainTree {
  readonly domid: Domid;
  readonly name: string;
  readonly uuid: string;
  readonly vcpus: number;
  readonly memoryKib: bigint;
  readonly storePort: number;
  readonly storeGfn: bigint;
  readonly consolePort: number;
  readonly consoleGfn: bigint;
}

export const domainPath = (domid: number): string => `/local/domain/${domid}`;
export const vmPath = (uuid: string): string => `/vm/${uuid}`;

/** The host's, and the guest may read it. */
export const hostOwned = (domid: Domid): readonly StorePermission[] => [
  { domid: DOM0, access: "none" },
  { domid, access: "read" },
];
/** The guest's own. */
export const guestOwned = (domid: Domid): readonly StorePermission[] => [{ domid, access: "none" }];
/** The guest's, and the back end in dom0 may read it. */
export const frontend = (domid: Domid): readonly StorePermission[] => [
  { domid, access: "none" },
  { domid: DOM0, access: "read" },
];

/** The nodes that the toolstack makes for a domain (libxl_create.c, libxl_dom.c), as far as a guest or xl looks at them. */
export function domainNodes(tree: DomainTree): StoreNode[] {
  const { domid } = tree;
  const root = domainPath(domid);
  const vm = vmPath(tree.uuid);
  const host = hostOwned(domid);
  const guest = guestOwned(domid);
  const node = (path: string, value: string, permissions = host): StoreNode => ({ path, value, permissions });
  const cpus = Array.from({ length: tree.vcpus }, (_, vcpu) => node(`${root}/cpu/${vcpu}/availability`, "online"));
  const guestNodes = [
    "control/shutdown",
    "control/feature-poweroff",
    "control/feature-reboot",
    "control/feature-suspend",
    "control/sysrq",
    "device/suspend/event-channel",
    "data",
    "drivers",
    "feature",
    "attr",
    "error",
  ].map((path) => node(`${root}/${path}`, "", guest));
  const backend = `/local/domain/0/backend/console/${domid}/0`;
  return [
    node(vm, ""),
    node(`${vm}/name`, tree.name),
    node(`${vm}/uuid`, tree.uuid),
    node(root, ""),
    node(`${root}/vm`, vm),
    node(`${root}/name`, tree.name),
    node(`${root}/domid`, `${domid}`),
    ...cpus,
    node(`${root}/memory/static-max`, `${tree.memoryKib}`),
    // Never other than the parent's: a guest that balloons out a page that is paged out dies.
    node(`${root}/memory/target`, `${tree.memoryKib}`),
    node(`${root}/memory/videoram`, "0"),
    node(`${root}/device`, ""),
    node(`${root}/control`, ""),
    ...guestNodes,
    node(`${root}/control/platform-feature-multiprocessor-suspend`, "1"),
    node(`${root}/control/platform-feature-xs_reset_watches`, "1"),
    node(`${root}/store/port`, `${tree.storePort}`),
    node(`${root}/store/ring-ref`, `${tree.storeGfn}`),
    node(`${root}/console/backend`, backend),
    node(`${root}/console/backend-id`, "0"),
    node(`${root}/console/limit`, "1048576"),
    node(`${root}/console/type`, "xenconsoled"),
    node(`${root}/console/output`, "pty"),
    node(`${root}/console/tty`, ""),
    node(`${root}/console/port`, `${tree.consolePort}`),
    node(`${root}/console/ring-ref`, `${tree.consoleGfn}`),
    node(`${backend}/frontend`, `${root}/console`),
    node(`${backend}/frontend-id`, `${domid}`),
    node(`${backend}/online`, "1"),
    node(`${backend}/state`, "1"),
    node(`${backend}/protocol`, "vt100"),
  ];
}

/** A network interface of a clone. Its handle is the parent's: the copied kernel has the device under that name. */
export interface VifNodes {
  readonly domid: Domid;
  readonly handle: number;
  readonly mac: string;
  readonly bridge: string;
}

/** Front and back end of a vif for the kernel's netback, with no hotplug script to wait for. */
export function vifNodes({ domid, handle, mac, bridge }: VifNodes): StoreNode[] {
  const front = `${domainPath(domid)}/device/vif/${handle}`;
  const back = `/local/domain/0/backend/vif/${domid}/${handle}`;
  const node = (path: string, value: string, permissions: readonly StorePermission[]): StoreNode => ({
    path,
    value,
    permissions,
  });
  const frontNodes = Object.entries({
    "": "",
    "/backend": back,
    "/backend-id": "0",
    "/handle": `${handle}`,
    "/mac": mac,
    "/state": "1",
  }).map(([path, value]) => node(`${front}${path}`, value, frontend(domid)));
  const backNodes = Object.entries({
    "": "",
    "/frontend": front,
    "/frontend-id": `${domid}`,
    "/online": "1",
    // netback refuses a vif without one, and asks for no more than its name.
    "/script": "/bin/true",
    "/mac": mac,
    "/bridge": bridge,
    "/handle": `${handle}`,
    "/type": "vif",
    "/hotplug-status": "connected",
    // Last: the kernel's bus probes the device when it sees the state.
    "/state": "1",
  }).map(([path, value]) => node(`${back}${path}`, value, hostOwned(domid)));
  return [...frontNodes, ...backNodes];
}

/** Everything below which a domain's nodes are; last the ones that tell whose they are, so that a removal that was cut short is found. */
export function domainRoots(domid: number, uuid: string): string[] {
  return [
    vmPath(uuid),
    ...["vif", "vbd", "sfdisk", "console"].map((type) => `/local/domain/0/backend/${type}/${domid}`),
    domainPath(domid),
  ];
}
