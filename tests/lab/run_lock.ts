/**
 * One lab at a time in a cache: the machine has room for one. Whoever runs a lab in a process holds a file lock, which ends
 * with the process. A lab for people (`lab up`) outlives its process; the state file says so, as it says which QEMUs there are.
 */
import { cacheFolder } from "./cache.ts";
import { removeIfThere } from "./files.ts";
import { progress } from "./progress.ts";
import { isQemu, killQemu } from "./qemu.ts";

export interface RunState {
  /** The process that started the lab. */
  readonly pid: number;
  /** Whether it outlives that process. */
  readonly detached: boolean;
  readonly sockets: string;
  readonly hosts: readonly { readonly number: number; readonly pid: number; readonly sshPort: number }[];
}

export function runFolder(): string {
  return `${cacheFolder()}/run`;
}

/** The state of the lab that was started last, if it was not put away. */
export async function readState(): Promise<RunState | undefined> {
  try {
    return JSON.parse(await Deno.readTextFile(`${runFolder()}/state.json`)) as RunState;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return undefined;
    throw error;
  }
}

export async function writeState(state: RunState): Promise<void> {
  await Deno.writeTextFile(`${runFolder()}/state.json`, JSON.stringify(state));
}

/** Kills what is left of a lab, and forgets it. */
export async function clearState(): Promise<void> {
  const state = await readState();
  if (state === undefined) return;
  for (const host of state.hosts) await killQemu(host.pid);
  await removeIfThere(state.sockets);
  await removeIfThere(`${runFolder()}/state.json`);
}

/**
 * Takes the lock, waiting for another's lab for up to `waitMs`; then throws an error that says whose it is. What a dead
 * process left is cleared.
 */
export async function takeRunLock(waitMs: number): Promise<Disposable> {
  await Deno.mkdir(runFolder(), { recursive: true });
  const endMs = performance.now() + waitMs;
  const file = await Deno.open(`${runFolder()}/lock`, { create: true, read: true, write: true });
  try {
    for (let said = false;; said = true) {
      const locked = await file.tryLock(true);
      const state = await readState();
      if (locked && !(state?.detached && state.hosts.some((host) => isQemu(host.pid)))) {
        await clearState();
        return file;
      }
      if (locked) await file.unlock();
      const holder = state?.detached
        ? "`lab up` (put it away with `lab down`)"
        : `process ${state?.pid ?? "unknown, still setting up"}`;
      if (performance.now() > endMs) throw new Error(`Cannot start a lab: another is up, started by ${holder}`);
      if (!said) progress(`waiting for the lab of ${holder}`);
      await new Promise((resolve) => setTimeout(resolve, 500));
    }
  } catch (error) {
    file.close();
    throw error;
  }
}
