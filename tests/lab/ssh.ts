/** Commands in dom0, over one ssh connection that stays open: 0.2 s a command under emulation instead of 2 s. */
import { type CommandOptions, type CommandResult, kill, runCommand, waitUntil } from "./command.ts";
import { exists, removeIfThere } from "./files.ts";

export interface SshTarget {
  /** Folder with `id_ed25519` and `known_hosts`. */
  readonly keys: string;
  readonly port: number;
}

/** Arguments of ssh for a connection of its own. */
export function sshArguments(target: SshTarget): string[] {
  const options = [
    "BatchMode=yes",
    `UserKnownHostsFile=${target.keys}/known_hosts`,
    "HostKeyAlias=lab",
    "StrictHostKeyChecking=yes",
    "IdentitiesOnly=yes",
    "ConnectTimeout=20",
    "LogLevel=ERROR",
  ];
  return [
    "-F",
    "none",
    "-i",
    `${target.keys}/id_ed25519`,
    "-p",
    `${target.port}`,
    ...options.flatMap((o) => ["-o", o]),
  ];
}

/** A local port that leads somewhere in dom0. */
export interface Forward extends AsyncDisposable {
  readonly port: number;
}

export class Ssh implements AsyncDisposable {
  readonly #target: SshTarget;
  readonly #control: string;
  #master: Deno.ChildProcess | undefined;

  /** `control`: path for the connection's socket. */
  constructor(target: SshTarget, control: string) {
    this.#target = target;
    this.#control = control;
  }

  /** Opens the connection, trying again while dom0 does not answer. */
  async connect(timeoutMs: number): Promise<void> {
    await waitUntil(() => this.#tryConnect(), {
      timeoutMs,
      everyMs: 300,
      late: () => `dom0 does not answer ssh on port ${this.#target.port}`,
    });
  }

  async #tryConnect(): Promise<boolean> {
    await this[Symbol.asyncDispose]();
    const args = ["--pdeathsig", "KILL", "ssh", "-M", "-N", "-S", this.#control, ...sshArguments(this.#target)];
    const master = new Deno.Command("setpriv", {
      args: [...args, "root@127.0.0.1"],
      stdin: "null",
      stdout: "null",
      stderr: "null",
    }).spawn();
    this.#master = master;
    let ended = false;
    void master.status.then(() => ended = true);
    await waitUntil(async () => ended || await exists(this.#control), {
      timeoutMs: 30_000,
      everyMs: 30,
      late: () => "ssh neither connects nor ends",
    });
    return !ended;
  }

  /** The command runs in dom0's shell. */
  async run(command: string, options: CommandOptions = {}): Promise<CommandResult> {
    return await runCommand(["ssh", "-S", this.#control, "-F", "none", "root@127.0.0.1", command], {
      ...options,
      label: command,
    });
  }

  /** A command that goes on: its streams are pipes. Kill it to end it; the command sees its pipes close. */
  spawn(command: string): Deno.ChildProcess {
    const args = ["--pdeathsig", "KILL", "ssh", "-S", this.#control, "-F", "none", "root@127.0.0.1", command];
    return new Deno.Command("setpriv", { args, stdin: "piped", stdout: "piped", stderr: "piped" }).spawn();
  }

  /** Runs a command whose output becomes a local file. */
  async download(command: string, localPath: string): Promise<void> {
    const script = 'exec ssh -S "$1" -F none root@127.0.0.1 "$2" > "$3"';
    await runCommand(["sh", "-c", script, "sh", this.#control, command, localPath], { label: command });
  }

  /** Leads a free port of 127.0.0.1 to a port or a Unix socket in dom0. */
  async forward(target: number | string): Promise<Forward> {
    const port = freePort();
    const there = typeof target === "number" ? `127.0.0.1:${target}` : target;
    const rule = ["-L", `127.0.0.1:${port}:${there}`, "-S", this.#control, "-F", "none", "root@127.0.0.1"];
    await runCommand(["ssh", "-O", "forward", ...rule]);
    return {
      port,
      [Symbol.asyncDispose]: async () => {
        // The connection may be gone, and the rule with it.
        await runCommand(["ssh", "-O", "cancel", ...rule], { check: false });
      },
    };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#master) {
      kill(this.#master, "SIGKILL");
      await this.#master.status;
      this.#master = undefined;
    }
    await removeIfThere(this.#control);
  }
}

/** A port of 127.0.0.1 that nobody listened on a moment ago. */
export function freePort(): number {
  using listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  return listener.addr.port;
}
