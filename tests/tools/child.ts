/** Runs a program as the leader of a process group, so that whatever it starts ends with it. */

export interface ChildOptions {
  readonly args: readonly string[];
  readonly cwd: string;
  readonly timeoutMs: number;
  readonly env?: Readonly<Record<string, string>>;
  readonly signal?: AbortSignal;
}

export type ChildEnd = { readonly kind: "exit"; readonly code: number } | { readonly kind: "timeout" } | {
  readonly kind: "aborted";
};

/** Between the polite and the hard end of a group. */
const GRACE_MS = 3_000;

function killGroup(pid: number, signal: Deno.Signal): void {
  try {
    Deno.kill(-pid, signal);
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound) && !isNoProcess(error)) throw error;
  }
}

function isNoProcess(error: unknown): boolean {
  return error instanceof Error && /ESRCH|No such process/i.test(error.message);
}

/** Its output goes to ours as it comes. At `timeoutMs` or `signal` the whole group is ended, SIGTERM first. */
export async function runChild(program: string, options: ChildOptions): Promise<ChildEnd> {
  if (options.signal?.aborted) return { kind: "aborted" };
  const child = new Deno.Command(program, {
    args: [...options.args],
    cwd: options.cwd,
    env: { ...options.env },
    stdin: "null",
    stdout: "inherit",
    stderr: "inherit",
    detached: true,
  }).spawn();
  let ended: "timeout" | "aborted" | undefined;
  let hardEnd: ReturnType<typeof setTimeout> | undefined;
  const end = (kind: "timeout" | "aborted") => {
    if (ended !== undefined) return;
    ended = kind;
    killGroup(child.pid, "SIGTERM");
    hardEnd = setTimeout(() => killGroup(child.pid, "SIGKILL"), GRACE_MS);
  };
  const abort = () => end("aborted");
  const timer = setTimeout(() => end("timeout"), options.timeoutMs);
  options.signal?.addEventListener("abort", abort, { once: true });
  const status = await child.status;
  clearTimeout(timer);
  clearTimeout(hardEnd);
  options.signal?.removeEventListener("abort", abort);
  // What the leader left behind (a QEMU, say) must not disturb the next run.
  killGroup(child.pid, "SIGKILL");
  return ended === undefined ? { kind: "exit", code: status.code } : { kind: ended };
}
