/** Small files beside a family's network, gone with it and with a reboot, as the network is. */
import { command, type CommandRunner } from "./commands.ts";
import type { NetworkNames } from "./names.ts";

export type StateFile = "settings.json";

/** Written whole or not at all. The folder can be read by all: dnsmasq, which gives up root, has its files there too. */
const WRITE = 'umask 022; mkdir -p "$1" && cat > "$1/$2.new" && mv "$1/$2.new" "$1/$2"';

export async function writeStateFile(
  runner: CommandRunner,
  names: NetworkNames,
  file: StateFile,
  text: string,
): Promise<void> {
  const argv = ["sh", "-c", WRITE, "sh", names.directory, file];
  await command(runner, `write ${names.directory}/${file}`, argv, { input: text });
}

/** Null where there is none. */
export async function readStateFile(
  runner: CommandRunner,
  names: NetworkNames,
  file: StateFile,
): Promise<string | null> {
  const script = '[ ! -e "$1" ] && exit 3; exec cat "$1"';
  const argv = ["sh", "-c", script, "sh", `${names.directory}/${file}`];
  const result = await runner.run(argv);
  return result.status === 0 ? result.stdout : null;
}

export async function removeStateFiles(runner: CommandRunner, names: NetworkNames): Promise<void> {
  await command(runner, `remove ${names.directory}`, ["rm", "-rf", "--", names.directory]);
}

/** Names of the folders that are there. */
export async function listStateFolders(runner: CommandRunner, stateDirectory: string): Promise<string[]> {
  const argv = ["sh", "-c", '[ -d "$1" ] || exit 0; exec ls -1 "$1"', "sh", stateDirectory];
  return (await command(runner, `list ${stateDirectory}`, argv)).split("\n").filter((name) => name !== "");
}
