/** Network interfaces of clones: the kernel's netback, a MAC of their own, the bridge that their parent is on. */
import { createHash } from "node:crypto";
import type { Domid } from "../../hypercall/ports.ts";
import { EngineError } from "../api/engine.ts";
import { domainPath, vifNodes } from "./domain_tree.ts";
import { type Store, writeNodes } from "./store.ts";
import type { Clock } from "./timing.ts";

const MAX_VIFS = 8;
const NETDEV_TIMEOUT_MS = 10_000;

export interface Vif {
  readonly handle: number;
  readonly bridge: string;
}

/** What the interfaces of this host are set up with. */
export interface VifPlumber {
  /** Whether the network device exists. */
  exists(device: string): Promise<boolean>;
  /** Puts a device on a bridge (none: leaves it alone) and sets it up. */
  attach(device: string, bridge: string): Promise<void>;
}

/** The interfaces that a domain has. A device that the back end's nodes do not describe is left out. */
export async function readVifs(store: Store, domid: number): Promise<Vif[]> {
  const vifs: Vif[] = [];
  for (const name of await store.list(`${domainPath(domid)}/device/vif`) ?? []) {
    if (!/^\d{1,3}$/.test(name) || Number(name) > 255 || vifs.length >= MAX_VIFS) continue;
    const bridge = await store.read(`/local/domain/0/backend/vif/${domid}/${name}/bridge`);
    vifs.push({ handle: Number(name), bridge: /^[\w.-]{1,15}$/.test(bridge ?? "") ? bridge ?? "" : "" });
  }
  return vifs;
}

/** A locally administered unicast MAC that follows from who the interface belongs to. */
export function macOf(uuid: string, handle: number): string {
  const digest = createHash("sha256").update(`${uuid}/${handle}`).digest();
  const bytes = [...digest.subarray(0, 6)];
  bytes[0] = ((bytes[0] ?? 0) & 0xfc) | 0x02;
  return bytes.map((byte) => byte.toString(16).padStart(2, "0")).join(":");
}

/** Makes a clone's interfaces and waits until the kernel has their devices. */
export async function plugVifs(
  store: Store,
  plumber: VifPlumber,
  clock: Clock,
  domid: Domid,
  uuid: string,
  vifs: readonly Vif[],
): Promise<void> {
  for (const { handle, bridge } of vifs) {
    await writeNodes(store, vifNodes({ domid, handle, bridge, mac: macOf(uuid, handle) }));
    const device = `vif${domid}.${handle}`;
    const deadline = clock.nowMs() + NETDEV_TIMEOUT_MS;
    while (!await plumber.exists(device)) {
      if (clock.nowMs() > deadline) {
        throw new EngineError("failed", `The kernel made no device ${device}: is xen-netback loaded?`);
      }
      await clock.sleep(20);
    }
    await plumber.attach(device, bridge);
  }
}
