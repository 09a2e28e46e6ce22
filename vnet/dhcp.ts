/** DHCP and router advertisements for guests without the client: a dnsmasq in the family's namespace. */
import { command, type CommandRunner } from "./commands.ts";
import { readStateFile, writeStateFile } from "./state_files.ts";
import { BRIDGE, type NetworkNames } from "./names.ts";
import type { FamilyPlan } from "./plan.ts";
import type { LocalMember } from "./ruleset.ts";
import type { Settings } from "./settings.ts";
import { hostnameOf } from "./identity.ts";

/** Prints the family's dnsmasq; there is one at most. */
const FIND =
  'for p in $(ip netns pids "$1"); do read -r c < "/proc/$p/comm" && [ "$c" = dnsmasq ] && echo "$p"; done; exit 0';
/** Ends it, and waits until its socket is free: 2 s at most. */
const STOP = 'kill "$1" 2>/dev/null; n=0; while kill -0 "$1" 2>/dev/null; do ' +
  "n=$((n + 1)); [ $n -lt 40 ] || exit 1; sleep 0.05; done; exit 0";

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

/** Its process, or undefined. */
export async function findDhcp(runner: CommandRunner, names: NetworkNames): Promise<string | undefined> {
  const output = await command(runner, `look for ${names.namespace}'s dnsmasq`, [
    "sh",
    "-c",
    FIND,
    "sh",
    names.namespace,
  ]);
  return output.trim().split("\n")[0] || undefined;
}

export async function stopDhcp(runner: CommandRunner, names: NetworkNames): Promise<void> {
  const pid = await findDhcp(runner, names);
  if (pid !== undefined) await command(runner, `end dnsmasq ${pid}`, ["sh", "-c", STOP, "sh", pid]);
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
  const config = dhcpConfig(plan, settings, names);
  const hosts = dhcpHosts(plan, members);
  const pid = await findDhcp(runner, names);
  const hostsChanged = await readStateFile(runner, names, "hosts") !== hosts;
  if (hostsChanged) await writeStateFile(runner, names, "hosts", hosts);
  if (pid !== undefined && await readStateFile(runner, names, "dnsmasq.conf") === config) {
    if (hostsChanged) await command(runner, "tell dnsmasq of a member", ["kill", "-HUP", pid]);
    return;
  }
  if (pid !== undefined) await stopDhcp(runner, names);
  await writeStateFile(runner, names, "dnsmasq.conf", config);
  const argv = ["dnsmasq", `--conf-file=${names.directory}/dnsmasq.conf`];
  await command(runner, `start DHCP for family ${plan.family.id}`, argv, { namespace: names.namespace });
}
