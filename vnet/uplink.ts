/** A family's way out: a pair of devices between its namespace and the host's, made only where egress is open. */
import { formatIp4, parseIp4, parseNetwork4 } from "./addresses.ts";
import { batch, command, CommandError, type CommandRunner, isObject, readJson, textOf } from "./commands.ts";
import { type NetworkNames, UPLINK_INNER } from "./names.ts";
import type { UplinkAddresses } from "./ruleset.ts";
import { SettingsError } from "./settings.ts";
import { writeSysctls } from "./segment.ts";

/** Device name and IPv4 addresses of every uplink of this host. */
async function readUplinks(runner: CommandRunner, names: NetworkNames): Promise<Map<string, string[]>> {
  const uplinks = new Map<string, string[]>();
  for (const item of await readJson(runner, "read the host's addresses", ["ip", "-json", "addr", "show"])) {
    const device = textOf(item, "ifname");
    if (device === undefined || !device.startsWith(names.uplinkPrefix)) continue;
    const info = Array.isArray(item.addr_info) ? item.addr_info.filter(isObject) : [];
    uplinks.set(device, info.flatMap((entry) => entry.family === "inet" ? textOf(entry, "local") ?? [] : []));
  }
  return uplinks;
}

/** Names of the uplinks that are on this host. */
export async function listUplinks(runner: CommandRunner, names: NetworkNames): Promise<string[]> {
  return [...(await readUplinks(runner, names)).keys()];
}

/**
 * Makes the uplink, or finds it. Addresses are the lowest free /31 of `network`: they mean something on this host only.
 *
 * @throws SettingsError where the host forwards nothing (its administrator decides that), or all addresses are taken.
 */
export async function ensureUplink(
  runner: CommandRunner,
  names: NetworkNames,
  network: string,
): Promise<UplinkAddresses> {
  const what = `open the way out of ${names.namespace}`;
  const forwarding = await command(runner, what, ["cat", "/proc/sys/net/ipv4/ip_forward"]);
  if (forwarding.trim() !== "1") throw new SettingsError(`Cannot ${what}: net.ipv4.ip_forward is 0 on this host`);
  const uplinks = await readUplinks(runner, names);
  const [held, ...more] = uplinks.get(names.uplink) ?? [];
  const pair = (host: string) => ({ host, family: formatIp4(parseIp4(host) + 1) });
  const { base, length } = parseNetwork4(network);
  if (held !== undefined && more.length === 0 && parseIp4(held) >= base && parseIp4(held) < base + 2 ** (32 - length)) {
    return pair(held);
  }
  if (uplinks.has(names.uplink)) await removeUplink(runner, names);
  const taken = new Set([...uplinks.values()].flat());
  for (let host = base; host < base + 2 ** (32 - length); host += 2) {
    if (taken.has(formatIp4(host))) continue;
    const addresses = pair(formatIp4(host));
    await batch(runner, what, "ip", [
      `link add ${names.uplink} type veth peer name ${UPLINK_INNER} netns ${names.namespace}`,
    ]);
    await writeSysctls(runner, [`?net/ipv6/conf/${names.uplink}/disable_ipv6=1`]);
    await batch(runner, what, "ip", [
      `link set dev ${names.uplink} up`,
      `addr add ${addresses.host}/31 dev ${names.uplink}`,
    ]);
    await batch(runner, what, "ip", [
      `addr add ${addresses.family}/31 dev ${UPLINK_INNER}`,
      `link set dev ${UPLINK_INNER} up`,
      `route add default via ${addresses.host}`,
    ], names.namespace);
    return addresses;
  }
  throw new SettingsError(`Cannot ${what}: all addresses of ${network} are taken`);
}

/** Nothing where there is none. */
export async function removeUplink(runner: CommandRunner, names: NetworkNames): Promise<void> {
  const argv = ["ip", "link", "del", "dev", names.uplink];
  const result = await runner.run(argv);
  if (result.status !== 0 && !/Cannot find device/.test(result.stderr)) {
    throw new CommandError(`remove ${names.uplink}`, argv, result);
  }
}
