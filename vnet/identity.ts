/** Who a member is, as it is told: text for its xenstore folder `data/snowflock/`, and for its vif's `mac`. */
import type { AddressPlan, Family } from "./plan.ts";
import { DEFAULT_MTU } from "./settings.ts";

/** Every value is text, ready for xenstore. */
export interface GuestIdentity {
  readonly mac: string;
  /** IPv4 address and prefix length: "10.83.0.4/16". */
  readonly address: string;
  readonly gateway: string;
  /** IPv6 address and prefix length, "/64". IPv6 has no gateway: it stays within the family. */
  readonly address6: string;
  readonly mtu: string;
  readonly hostname: string;
}

/** Distinct within the fleet; a valid label (RFC 1123). */
export function hostnameOf(family: Family, cloneId: number, base?: string): string {
  const stem = base !== undefined && /^[a-z\d]([a-z\d-]{0,50}[a-z\d])?$/i.test(base)
    ? base
    : `sf-${family.id.slice(0, 8)}`;
  return cloneId === 0 && base === stem ? stem : `${stem}-${cloneId}`;
}

/**
 * `hostname` is the parent's: it keeps it, clone k is called `hostname-k`. Anything that is no plain host name (it comes
 * from a guest) is replaced by one made of the family's id.
 */
export function guestIdentity(
  plan: AddressPlan,
  family: Family,
  cloneId: number,
  options: { readonly hostname?: string; readonly mtu?: number } = {},
): GuestIdentity {
  const { prefixLength4, gateway4 } = plan.family(family);
  const { mac, ip4, ip6 } = plan.member(family, cloneId);
  return {
    mac,
    address: `${ip4}/${prefixLength4}`,
    gateway: gateway4,
    address6: `${ip6}/64`,
    mtu: String(options.mtu ?? DEFAULT_MTU),
    hostname: hostnameOf(family, cloneId, options.hostname),
  };
}
