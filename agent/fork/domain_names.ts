import { EngineError } from "../api/engine.ts";
import { domainPath } from "./domain_tree.ts";
import type { Store } from "./store.ts";

/** The domain of a domid or a name. Throws an EngineError `no-such-domain`. */
export async function resolveDomain(
  store: Pick<Store, "read" | "list">,
  domain: string | number,
): Promise<{ domid: number; name: string }> {
  if (typeof domain === "number" || /^\d{1,5}$/.test(domain)) {
    const domid = Number(domain);
    const name = await store.read(`${domainPath(domid)}/name`);
    if (domid === 0 || name === undefined) throw new EngineError("no-such-domain", `There is no domain ${domid}`);
    return { domid, name };
  }
  for (const domid of await store.list("/local/domain") ?? []) {
    if (domid !== "0" && await store.read(`${domainPath(Number(domid))}/name`) === domain) {
      return { domid: Number(domid), name: domain };
    }
  }
  throw new EngineError("no-such-domain", `There is no domain named ${domain.slice(0, 64)}`);
}
