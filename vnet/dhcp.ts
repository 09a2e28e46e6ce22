/** DHCP and router advertisements for guests without the client: a dnsmasq in the family's namespace. */
import { command, type CommandRunner } from "./commands.ts";
import { BRIDGE, type NetworkNames } from "./names.ts";
import type { FamilyPlan } from "./plan.ts";
import type { LocalMember } from "./ruleset.ts";
import type { Settings } from "./settings.ts";
import { hostnameOf } from "./identity.ts";

/** Sets `pid` to the family's dnsmasq, $1 being its namespace; there is one at most. */
const FIND = 'pid=; for p in $(ip netns pids "$1"); do ' +
  'read -r name < "/proc/$p/comm" && [ "$name" = dnsmasq ] && pid=$p; done; ';
/** Ends it, and waits until it has left the namespace (an ended process that nobody has reaped is in none): 2 s at most. */
const STOP = 'if [ -n "$pid" ]; then kill "$pid" 2>/dev/null; n=0; while [ -e "/proc/$pid/ns/net" ]; do ' +
  "n=$((n + 1)); [ $n -lt 40 ] || exit 1; sleep 0.05; done; fi; ";
/**
 * Brings it to the settings ($3) and the members (standard input), in the folder $2: one process instead of five. Files are
 * readable by all, for dnsmasq gives up root, and replaced whole.
 */
const ENSURE =
  'umask 022; mkdir -p "$2" && cd "$2" && cat > hosts.new && printf %s "$3" > dnsmasq.conf.new || exit 1; ' +
  `changed=; cmp -s hosts.new hosts || changed=1; mv hosts.new hosts || exit 1; ${FIND}` +
  'if [ -n "$pid" ] && cmp -s dnsmasq.conf.new dnsmasq.conf; then rm dnsmasq.conf.new; ' +
  `[ -z "$changed" ] || kill -HUP "$pid"; exit; fi; ` +
  `${STOP}mv dnsmasq.conf.new dnsmasq.conf && exec dnsmasq --conf-file="$2/dnsmasq.conf"`;

/** dnsmasq's settings. Addresses are never from a pool: who is not listed gets none. */
export function dhcpConfig(plan: FamilyPlan, settings: Settings, names: NetworkNames): string {
  const [network = "", length = ""] = plan.subnet4.split("/");
  const mask = [24, 16, 8, 0].map((shift) => 2 ** 32 - 2 ** (32 - Number(length)) >>> shift & 255).join(".");
  return [
    "port=0",
    "no-hosts",
    "no-ping",
    `interface=${BRIDGE}`,
    "except-interface=lo",
    "bind-interfaces",
    `dhcp-range=${network},static,${mask},infinite`,
    "dhcp-authoritative",
    // A clone has its parent's client id; only the MAC tells them apart.
    "dhcp-ignore-clid",
    `dhcp-hostsfile=${names.directory}/hosts`,
    `dhcp-option=option:router,${plan.gateway4}`,
    `dhcp-option=option:mtu,${settings.mtu}`,
    settings.egress.dns === null
      ? "dhcp-option=option:dns-server"
      : `dhcp-option=option:dns-server,${settings.egress.dns}`,
    "enable-ra",
    `dhcp-range=${plan.prefix6.split("/")[0]},ra-only,64,infinite`,
    // Lifetime 0: an address and the prefix, but no way out by IPv6.
    `ra-param=${BRIDGE},mtu:${settings.mtu},60,0`,
    `dhcp-leasefile=${names.directory}/leases`,
    `pid-file=${names.directory}/dnsmasq.pid`,
    "",
  ].join("\n");
}

export function dhcpHosts(plan: FamilyPlan, members: readonly LocalMember[]): string {
  return members.map(({ mac, ip4, cloneId }) => `${mac},${ip4},${hostnameOf(plan.family, cloneId)},infinite\n`).join(
    "",
  );
}

export async function stopDhcp(runner: CommandRunner, names: NetworkNames): Promise<void> {
  await command(runner, `end DHCP in ${names.namespace}`, ["sh", "-c", `${FIND}${STOP}exit 0`, "sh", names.namespace]);
}

/** Starts it, or tells it of a change; leaves alone what is as it should be. */
export async function ensureDhcp(
  runner: CommandRunner,
  names: NetworkNames,
  plan: FamilyPlan,
  settings: Settings,
  members: readonly LocalMember[],
): Promise<void> {
  if (!settings.dhcp) return await stopDhcp(runner, names);
  const argv = ["sh", "-c", ENSURE, "sh", names.namespace, names.directory, dhcpConfig(plan, settings, names)];
  const options = { input: dhcpHosts(plan, members), namespace: names.namespace };
  await command(runner, `answer DHCP for family ${plan.family.id}`, argv, options);
}
