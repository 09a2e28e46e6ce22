/** One emulated machine: its QEMU process and the monitor that steers it. */
import { CommandError, kill, runCommand, waitUntil } from "./command.ts";
import { exists, removeIfThere } from "./files.ts";
import type { Images } from "./images.ts";

export interface QemuOptions {
  /** 1 or 2. */
  readonly number: number;
  /** Where disk, log and pid file lie. */
  readonly folder: string;
  /** Where sockets lie: a short path, for a socket's holds 107 bytes. */
  readonly sockets: string;
  /** Folder that dom0 sees, read-only, as /mnt/lab. */
  readonly share: string;
  readonly images: Images;
  readonly memoryMib: number;
  readonly dom0MemoryMib: number;
  /** Local port that leads to dom0's ssh. */
  readonly sshPort: number;
  /** Lives on when this process ends. Otherwise it is killed with the thread that started it. */
  readonly detached: boolean;
}

/** Each switch is needed: see README.md, "The machine". */
const CPU = "EPYC,+svm,+npt,-smap,-smep,-monitor,-rdtscp";
const XEN = "console=com1 com1=115200,8n1 loglvl=all guest_loglvl=all cpuidle=0 hap=1 " +
  "spec-ctrl=eager-fpu=yes sched=credit sched_credit_tslice_ms=5 bootscrub=0";
const DOM0 = "console=hvc0 root=/dev/vda rw net.ifnames=0 quiet mitigations=off rodata=off";

function argumentsOf(options: QemuOptions): string[] {
  const { number, folder, sockets, images } = options;
  const other = 3 - number;
  return [
    ["-name", `snowflock-lab-${number}`],
    ["-machine", "q35", "-accel", "tcg,thread=multi", "-smp", "1", "-m", `${options.memoryMib}`, "-cpu", CPU],
    ["-kernel", `${images.xen}/xen`],
    ["-append", `dom0_mem=${options.dom0MemoryMib}M,max:${options.dom0MemoryMib}M ${XEN}`],
    ["-initrd", `${images.dom0}/vmlinux ${DOM0} lab.host=${number},${images.dom0}/initrd`],
    ["-drive", `file=${folder}/disk.qcow2,format=qcow2,if=none,id=disk,cache=unsafe`],
    ["-device", "virtio-blk-pci,drive=disk"],
    ["-netdev", `user,id=user,hostfwd=tcp:127.0.0.1:${options.sshPort}-:22`],
    ["-device", `virtio-net-pci,netdev=user,mac=52:54:00:10:00:0${number}`],
    // Datagrams between two paths: either end may come and go.
    [
      "-netdev",
      `dgram,id=cable,local.type=unix,local.path=${sockets}/cable-${number},` +
      `remote.type=unix,remote.path=${sockets}/cable-${other}`,
    ],
    ["-device", `virtio-net-pci,netdev=cable,mac=52:54:00:98:00:0${number}`],
    ["-fsdev", `local,id=share,path=${options.share},security_model=none,readonly=on`],
    ["-device", "virtio-9p-pci,fsdev=share,mount_tag=lab"],
    ["-qmp", `unix:${sockets}/qmp-${number},server=on,wait=off`],
    ["-serial", `file:${folder}/serial.log`, "-pidfile", `${folder}/qemu.pid`],
    ["-display", "none", "-monitor", "none"],
  ].flat();
}

export class Qemu {
  readonly #options: QemuOptions;
  /** Undefined if it is detached. */
  readonly #child: Deno.ChildProcess | undefined;

  private constructor(options: QemuOptions, child: Deno.ChildProcess | undefined, readonly pid: number) {
    this.#options = options;
    this.#child = child;
  }

  /** Makes the disk's overlay if there is none. */
  static async start(options: QemuOptions): Promise<Qemu> {
    const { folder, images, number, sockets } = options;
    const disk = `${folder}/disk.qcow2`;
    if (!(await exists(disk))) {
      const base = `${images.dom0}/dom0.img`;
      await runCommand(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", base, disk]);
    }
    for (const stale of [`${folder}/qemu.pid`, `${folder}/serial.log`, `${sockets}/cable-${number}`]) {
      await removeIfThere(stale);
    }
    const qemu = ["qemu-system-x86_64", ...argumentsOf(options)];
    if (options.detached) {
      await runCommand([...qemu, "-daemonize"], { label: "qemu-system-x86_64 -daemonize" });
      return new Qemu(options, undefined, Number(await Deno.readTextFile(`${folder}/qemu.pid`)));
    }
    const script = 'log=$1; shift; exec setpriv --pdeathsig KILL "$@" > "$log" 2>&1';
    const args = ["-c", script, "sh", `${folder}/qemu.log`, ...qemu];
    const child = new Deno.Command("sh", { args, stdin: "null", stdout: "null", stderr: "null" }).spawn();
    const started = new Qemu(options, child, child.pid);
    let ended = false;
    void child.status.then(() => ended = true);
    try {
      await waitUntil(() => ended || exists(`${folder}/qemu.pid`), {
        timeoutMs: 20_000,
        everyMs: 20,
        late: () => "QEMU does not start",
      });
      if (ended) {
        const stderr = await Deno.readTextFile(`${folder}/qemu.log`);
        throw new CommandError("qemu-system-x86_64", { status: (await child.status).code, stdout: "", stderr });
      }
    } catch (error) {
      await started.kill();
      throw error;
    }
    return started;
  }

  /** What Xen and dom0 printed. */
  async serialLog(): Promise<string> {
    return await Deno.readTextFile(`${this.#options.folder}/serial.log`).catch(() => "");
  }

  get running(): boolean {
    return isQemu(this.pid);
  }

  /** Plugs the cable between the hosts in or out: both see their link come or go. */
  async setLink(up: boolean): Promise<void> {
    await this.#monitor("set_link", { name: "cable", up });
  }

  /** As if its power were cut. The disk stays for the next {@link start}. */
  async kill(): Promise<void> {
    if (this.#child) {
      kill(this.#child, "SIGKILL");
      await this.#child.status;
    } else {
      await killQemu(this.pid);
    }
  }

  async #monitor(execute: string, args: Record<string, unknown>): Promise<void> {
    using connection = await Deno.connect({
      transport: "unix",
      path: `${this.#options.sockets}/qmp-${this.#options.number}`,
    });
    const reader = connection.readable.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    /** The next answer; the greeting and events are passed over. */
    const answer = async (): Promise<void> => {
      for (;;) {
        const end = text.indexOf("\n");
        if (end < 0) {
          const { value, done } = await reader.read();
          if (done) throw new Error(`QEMU's monitor hung up during ${execute}`);
          text += value;
          continue;
        }
        const line = text.slice(0, end);
        text = text.slice(end + 1);
        if (line.includes('"error"')) throw new Error(`QEMU cannot ${execute}: ${line}`);
        if (line.includes('"return"')) return;
      }
    };
    const send = async (message: unknown): Promise<void> => {
      await connection.write(new TextEncoder().encode(JSON.stringify(message) + "\n"));
      await answer();
    };
    await send({ execute: "qmp_capabilities" });
    await send({ execute, arguments: args });
  }
}

/** Whether `pid` is a QEMU of a lab: a pid from a file may have become another process's. */
export function isQemu(pid: number): boolean {
  try {
    return Deno.readTextFileSync(`/proc/${pid}/cmdline`).includes("\0snowflock-lab-");
  } catch {
    return false;
  }
}

/** Kills a QEMU that is not this process's child, and waits for its end. */
export async function killQemu(pid: number): Promise<void> {
  if (!isQemu(pid)) return;
  Deno.kill(pid, "SIGKILL");
  await waitUntil(() => !isQemu(pid), {
    timeoutMs: 10_000,
    everyMs: 20,
    late: () => `QEMU ${pid} does not end`,
  });
}
