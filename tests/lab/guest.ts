/** A guest of the lab: a domain that runs the xenstore shell (`guest/shell.c`), be it created by xl or cloned. */
import type { Host } from "./host.ts";
import { CommandError } from "./command.ts";

export interface GuestOptions {
  readonly name: string;
  /** `selfcheck` starts the self-check at once. Default `minimal`. */
  readonly kind?: "minimal" | "selfcheck";
  /** Default 128; 96 is the least that boots. */
  readonly memoryMib?: number;
  /** Default 1. */
  readonly vcpus?: number;
  /** Memory that the self-check fills. Default 40. */
  readonly selfcheckMib?: number;
  /** Bridge of a network interface; it is made if there is none of that name. */
  readonly vif?: string;
  /** The interface's MAC address. Default: one of xl's choice. */
  readonly mac?: string;
  /** Address of eth0, such as "10.9.0.2/24". */
  readonly ip?: string;
  /** More of the kernel's command line. */
  readonly extra?: string;
  /** More lines of xl's configuration, such as `disk=[...]`. */
  readonly config?: readonly string[];
  /** Wait until the shell answers. Default true. */
  readonly wait?: boolean;
}

/** xl's configuration of a guest. */
export function guestConfig(options: GuestOptions): string {
  const memory = options.memoryMib ?? 128;
  const extra = ["console=hvc0", "quiet", "mitigations=off", "cryptomgr.notests"];
  if (options.kind === "selfcheck") extra.push(`lab.selfcheck=${options.selfcheckMib ?? 40}`);
  if (options.ip !== undefined) extra.push(`lab.ip=${options.ip}`);
  if (options.extra !== undefined) extra.push(options.extra);
  const lines = [
    `name="${options.name}"`,
    'type="pvh"',
    'kernel="/usr/lib/lab/vmlinux"',
    'ramdisk="/usr/lib/lab/initramfs.gz"',
    `extra="${extra.join(" ")}"`,
    `memory=${memory}`,
    `maxmem=${memory}`,
    `vcpus=${options.vcpus ?? 1}`,
    // Without it the guest stops at its first RDTSCP under emulation.
    'tsc_mode="native"',
    'on_poweroff="destroy"',
    // A domain that crashed is evidence.
    'on_crash="preserve"',
    'on_reboot="preserve"',
  ];
  if (options.vif !== undefined) {
    lines.push(`vif=["bridge=${options.vif}${options.mac === undefined ? "" : `,mac=${options.mac}`}"]`);
  }
  return [...lines, ...(options.config ?? [])].join("\n") + "\n";
}

export interface ShellAnswer {
  readonly status: number;
  /** What the command printed on both streams, its first 2,000 bytes. */
  readonly output: string;
}

export interface Selfcheck {
  readonly rounds: number;
  readonly mismatches: number;
  /** How long it runs, by the guest's clock. */
  readonly seconds: number;
}

/** Names a command given to {@link Guest.shell}: a clone answers a command that its parent was running under the same token. */
export function newToken(): string {
  return crypto.randomUUID().slice(0, 13);
}

export class Guest {
  constructor(readonly host: Host, readonly domid: number, readonly name: string) {}

  /** Waits until the xenstore shell listens. */
  async ready(timeoutMs = 120_000): Promise<void> {
    await this.answer("ready", { timeoutMs });
  }

  /** Runs a command in the guest. Several may run at a time. */
  async shell(
    command: string,
    options: { readonly timeoutMs?: number; readonly token?: string; readonly check?: boolean } = {},
  ): Promise<ShellAnswer> {
    const answer = await this.#exchange(options.token ?? newToken(), command, options.timeoutMs ?? 60_000);
    if (options.check && answer.status !== 0) {
      throw new CommandError(`${this.name}: ${command}`, { status: answer.status, stdout: answer.output, stderr: "" });
    }
    return answer;
  }

  /** Waits for the answer to a command that this guest got from its parent, under the token the parent was given. */
  async answer(token: string, options: { readonly timeoutMs?: number } = {}): Promise<ShellAnswer> {
    return await this.#exchange(token, "", options.timeoutMs ?? 60_000);
  }

  async #exchange(token: string, command: string, timeoutMs: number): Promise<ShellAnswer> {
    const run = `lab-guest-shell ${this.domid} ${token} ${timeoutMs}`;
    const result = await this.host.run(run, { input: command, check: false, timeoutMs: timeoutMs + 30_000 });
    if (result.status !== 0) throw new CommandError(`${this.name} (domain ${this.domid}): ${command || token}`, result);
    const space = result.stdout.indexOf(" ");
    return { status: Number(result.stdout.slice(0, space)), output: result.stdout.slice(space + 1) };
  }

  /** The last verdict, if there is one yet. */
  async selfcheck(): Promise<Selfcheck | undefined> {
    const text = await this.read("data/selfcheck");
    const match = text === undefined ? null : /^rounds=(\d+) mismatches=(\d+) seconds=(\d+)$/.exec(text);
    if (!match) return undefined;
    return { rounds: Number(match[1]), mismatches: Number(match[2]), seconds: Number(match[3]) };
  }

  /** A node of the guest's xenstore tree. */
  async read(path: string): Promise<string | undefined> {
    const command = `xenstore-read /local/domain/${this.domid}/${path}`;
    const { status, stdout } = await this.host.run(command, { check: false });
    return status === 0 ? stdout.replace(/\n$/, "") : undefined;
  }

  /** All that domains of this name printed on their console on this host. */
  async console(): Promise<string> {
    return (await this.host.run(`cat /var/log/xen/guest-${this.name}.log`, { check: false })).stdout;
  }

  /** Flips one word in each of up to `pages` pages that the self-check filled. What was changed, a line each. */
  async poke(pages: number): Promise<string> {
    const { stdout } = await this.host.run(`lab-poke ${this.domid} ${await this.#lastGfn()} ${pages}`);
    return stdout;
  }

  async #lastGfn(): Promise<number> {
    return Number(await this.read("memory/static-max")) / 4;
  }

  async destroy(): Promise<void> {
    await this.host.run(`xl destroy ${this.domid}`);
  }
}
