/** One host of the lab: Xen and its dom0 in QEMU. */
import type { CommandOptions, CommandResult } from "./command.ts";
import { CommandError, waitUntil } from "./command.ts";
import { exists, removeIfThere } from "./files.ts";
import { Guest, guestConfig, type GuestOptions } from "./guest.ts";
import { Qemu, type QemuOptions } from "./qemu.ts";
import { type Forward, Ssh } from "./ssh.ts";

/** Up to here a file goes through ssh; larger ones through the shared folder, 50 times as fast. */
const SSH_COPY_BYTES = 64 * 1024;
const BOOT_TIMEOUT_MS = 180_000;

export class Host implements AsyncDisposable {
  readonly #options: QemuOptions;
  readonly #ssh: Ssh;
  #qemu: Qemu;
  #copies = 0;

  private constructor(options: QemuOptions, qemu: Qemu) {
    this.#options = options;
    this.#qemu = qemu;
    this.#ssh = new Ssh(
      { keys: options.images.dom0, port: options.sshPort },
      `${options.sockets}/ssh-${options.number}`,
    );
  }

  /** Starts the machine; {@link ready} waits for it. */
  static async start(options: QemuOptions): Promise<Host> {
    return new Host(options, await Qemu.start(options));
  }

  /** 1 or 2. */
  get number(): number {
    return this.#options.number;
  }

  /** On the cable between the hosts (dom0's eth1). */
  get address(): string {
    return `10.98.0.${this.number}`;
  }

  get pid(): number {
    return this.#qemu.pid;
  }

  get sshPort(): number {
    return this.#options.sshPort;
  }

  /** Waits until xenstored and ssh answer. */
  async ready(): Promise<void> {
    let log = "";
    await waitUntil(async () => {
      log = await this.#qemu.serialLog();
      if (log.includes("lab: boot failed") || log.includes("Panic on CPU") || !this.#qemu.running) {
        throw new CommandError(`Host ${this.number} does not boot`, { status: 1, stdout: log, stderr: "" });
      }
      return log.includes("lab: ready");
    }, {
      timeoutMs: BOOT_TIMEOUT_MS,
      everyMs: 100,
      late: () => `Host ${this.number} does not boot within ${BOOT_TIMEOUT_MS} ms:\n${log.slice(-2000)}`,
    });
    await this.#ssh.connect(60_000);
  }

  /** Runs a command in dom0, as root. */
  async run(command: string, options: CommandOptions = {}): Promise<CommandResult> {
    return await this.#ssh.run(command, options);
  }

  /** Starts a command in dom0 whose streams are pipes here. */
  spawn(command: string): Deno.ChildProcess {
    return this.#ssh.spawn(command);
  }

  /** Copies a file into dom0, with its mode. */
  async copyTo(localPath: string, remotePath: string): Promise<void> {
    const { size, mode } = await Deno.stat(localPath);
    const finish = `chmod ${((mode ?? 0o644) & 0o777).toString(8)} ${quote(remotePath)}`;
    const folder = `mkdir -p ${quote(remotePath.slice(0, remotePath.lastIndexOf("/")) || "/")}`;
    if (size <= SSH_COPY_BYTES) {
      const input = await Deno.readFile(localPath);
      await this.run(`${folder} && cat > ${quote(remotePath)} && ${finish}`, { input });
      return;
    }
    const name = `copy-${this.number}-${this.#copies++}`;
    const shared = `${this.#options.share}/${name}`;
    await Deno.copyFile(localPath, shared);
    try {
      const command = `${folder} && cp /mnt/lab/${name} ${quote(remotePath)} && ${finish}`;
      await this.run(command, { timeoutMs: 300_000 });
    } finally {
      await removeIfThere(shared);
    }
  }

  /** Copies a file out of dom0, through ssh (some MB/s). */
  async copyFrom(remotePath: string, localPath: string): Promise<void> {
    await this.#ssh.download(`cat ${quote(remotePath)}`, localPath);
  }

  /** Leads a port of 127.0.0.1 to a port or a Unix socket in dom0. */
  async forward(target: number | string): Promise<Forward> {
    return await this.#ssh.forward(target);
  }

  /** Creates a guest by xl and waits for its shell. */
  async createGuest(options: GuestOptions): Promise<Guest> {
    const { name, vif } = options;
    if (!/^[a-z0-9-]{1,32}$/.test(name)) throw new Error(`Not a guest's name: ${name}`);
    const bridge = vif === undefined
      ? ""
      : `{ [ -e /sys/class/net/${vif} ] || ip link add ${vif} type bridge; } && ip link set ${vif} up && `;
    const command = `cat > /root/${name}.cfg && ${bridge}xl create -q /root/${name}.cfg >&2 && xl domid ${name}`;
    const { stdout } = await this.run(command, { input: guestConfig(options) });
    const guest = new Guest(this, Number(stdout), name);
    if (options.wait ?? true) await guest.ready();
    return guest;
  }

  /** A domain that exists, such as a clone. */
  async guestByDomid(domid: number): Promise<Guest> {
    const { stdout } = await this.run(`xl domname ${domid}`);
    return new Guest(this, domid, stdout.trim());
  }

  /** Plugs the cable to the other host in or out. */
  async setLink(up: boolean): Promise<void> {
    await this.#qemu.setLink(up);
  }

  /** Loss and reordering of what this host sends over the cable, in percent. Both 0: none. */
  async netem(lossPercent: number, reorderPercent: number): Promise<void> {
    // Reordering means that the other packets are late.
    const reorder = reorderPercent > 0 ? ` delay 5ms reorder ${100 - reorderPercent}%` : "";
    const command = lossPercent === 0 && reorderPercent === 0
      ? "tc qdisc del dev eth1 root 2> /dev/null || true"
      : `tc qdisc replace dev eth1 root netem limit 10000${reorder}${lossPercent > 0 ? ` loss ${lossPercent}%` : ""}`;
    await this.run(command);
  }

  /** Ends the machine at once. Its disk keeps what it had written. */
  async powerCut(): Promise<void> {
    await this.#ssh[Symbol.asyncDispose]();
    await this.#qemu.kill();
  }

  /** Boots again, after a power cut or instead of one. */
  async restart(): Promise<void> {
    if (this.#qemu.running) await this.powerCut();
    this.#qemu = await Qemu.start(this.#options);
    await this.ready();
  }

  /** What Xen and dom0 printed since the last boot. */
  async serialLog(): Promise<string> {
    return await this.#qemu.serialLog();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.powerCut();
    if (await exists(`${this.#options.folder}/disk.qcow2`)) await Deno.remove(`${this.#options.folder}/disk.qcow2`);
  }
}

/** For dom0's shell. */
function quote(text: string): string {
  return `'${text.replaceAll("'", `'\\''`)}'`;
}
