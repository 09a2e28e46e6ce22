/** One or two hosts, up and joined. `await using lab = await Lab.up({ hosts: 2 })`. */
import { removeIfThere } from "./files.ts";
import { Host } from "./host.ts";
import { buildImages, type Images } from "./images.ts";
import { progress, since } from "./progress.ts";
import { clearState, runFolder, takeRunLock, writeState } from "./run_lock.ts";
import { freePort } from "./ssh.ts";

export interface LabOptions {
  /** Default 1. */
  readonly hosts?: 1 | 2;
  /** Of each host, dom0 included. Default 6144 for one host, 4096 for each of two. */
  readonly memoryMib?: number;
  /** Of that, dom0's. Default 1536. */
  readonly dom0MemoryMib?: number;
  /** How long to wait for another lab to end. Default 20 minutes. */
  readonly waitMs?: number;
  /** The lab lives on when this process ends, until `lab down`. Default false. */
  readonly detached?: boolean;
}

export class Lab implements AsyncDisposable {
  readonly #lock: Disposable;

  private constructor(readonly hosts: readonly Host[], lock: Disposable) {
    this.#lock = lock;
  }

  /** Builds what is missing, boots the hosts and waits until they answer. */
  static async up(options: LabOptions = {}): Promise<Lab> {
    const images = await buildImages();
    await using stack = new AsyncDisposableStack();
    const lock = stack.use(await takeRunLock(options.waitMs ?? 1_200_000));
    stack.defer(clearState);
    const started = performance.now();
    const count = options.hosts ?? 1;
    progress(`booting ${count === 1 ? "a host" : `${count} hosts`}`);
    const hosts = await boot(images, options, stack);
    await Promise.all(hosts.map((host) => host.ready()));
    progress(`up in ${since(started)}`);
    stack.move();
    return new Lab(hosts, lock);
  }

  host(number: 1 | 2): Host {
    const host = this.hosts[number - 1];
    if (host === undefined) throw new Error(`The lab has no host ${number}`);
    return host;
  }

  /** Leaves a detached lab running. */
  release(): void {
    this.#lock[Symbol.dispose]();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    try {
      await Promise.all(this.hosts.map((host) => host[Symbol.asyncDispose]()));
      await clearState();
    } finally {
      this.#lock[Symbol.dispose]();
    }
  }
}

async function boot(images: Images, options: LabOptions, stack: AsyncDisposableStack): Promise<Host[]> {
  const count = options.hosts ?? 1;
  const detached = options.detached ?? false;
  const sockets = await Deno.makeTempDir({ prefix: "snowflock-lab-" });
  const share = `${runFolder()}/share`;
  await removeIfThere(share);
  await Deno.mkdir(share, { recursive: true });
  for (const file of ["initramfs.gz", "lab-guest-shell", "lab-poke"]) {
    await Deno.copyFile(`${images.guest}/${file}`, `${share}/${file}`);
  }
  const hosts: Host[] = [];
  for (let number = 1; number <= count; number++) {
    const folder = `${runFolder()}/${number}`;
    await removeIfThere(folder);
    await Deno.mkdir(folder, { recursive: true });
    const host = await Host.start({
      number,
      folder,
      sockets,
      share,
      images,
      memoryMib: options.memoryMib ?? (count === 1 ? 6144 : 4096),
      dom0MemoryMib: options.dom0MemoryMib ?? 1536,
      sshPort: freePort(),
      detached,
    });
    hosts.push(stack.use(host));
    await writeState({
      pid: Deno.pid,
      detached,
      sockets,
      hosts: hosts.map(({ number, pid, sshPort }) => ({ number, pid, sshPort })),
    });
  }
  return hosts;
}
