/** Taking a family's network off the host, however much of it is there. */
import { command, type CommandRunner, isObject, readRules, textOf } from "./commands.ts";
import { stopDhcp } from "./dhcp.ts";
import type { Naming, NetworkNames } from "./names.ts";
import { cloneIdOfLink, listNamespaces, readSegment, releaseVif, removeOverlay } from "./segment.ts";
import { listStateFolders, removeStateFiles } from "./state_files.ts";
import { listUplinks, removeUplink } from "./uplink.ts";

/** Removes all there is of one network. @throws AggregateError of what could not be removed; that does not keep the rest. */
export async function removeNetwork(runner: CommandRunner, names: NetworkNames): Promise<void> {
  const present = (await listNamespaces(runner)).includes(names.namespace);
  const state = present ? await readSegment(runner, names) : null;
  const vifs = (state?.links ?? []).filter((link) => cloneIdOfLink(link) !== undefined);
  const steps: (() => Promise<unknown>)[] = [
    ...(state === null ? [] : [() => stopDhcp(runner, names)]),
    ...vifs.map(({ device }) => () => releaseVif(runner, names, device)),
    () => removeUplink(runner, names),
    ...(state === null ? [] : [() => removeOverlay(runner, names)]),
    ...(present ? [() => command(runner, `remove ${names.namespace}`, ["ip", "netns", "del", names.namespace])] : []),
    () =>
      // Added first, so that its absence is no error.
      command(runner, `remove ${names.hostTable}`, ["nft", "-f", "-"], {
        input: `add table inet ${names.hostTable}\ndelete table inet ${names.hostTable}\n`,
      }),
    () => removeStateFiles(runner, names),
  ];
  const errors: unknown[] = [];
  for (const step of steps) {
    try {
      await step();
    } catch (error) {
      errors.push(error);
    }
  }
  if (errors.length > 0) {
    throw new AggregateError(errors, `Cannot remove all of ${names.namespace}: ${errors.join("; ")}`);
  }
}

/** The VXLAN ids of all networks that this host has at least a trace of, lowest first. */
export async function findTraces(runner: CommandRunner, naming: Naming): Promise<number[]> {
  const tables = (await readRules(runner, ["tables"])).flatMap(({ table }) =>
    isObject(table) ? textOf(table, "name") ?? [] : []
  );
  const found = [
    ...await listNamespaces(runner),
    ...await listUplinks(runner, naming.of(0)),
    ...tables,
    ...await listStateFolders(runner, naming.stateDirectory),
  ];
  return [...new Set(found.flatMap((name) => naming.vniOf(name) ?? []))].sort((a, b) => a - b);
}
