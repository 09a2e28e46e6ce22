/** For tests: Debian's own Slurm on loopback: munged, slurmctld and a slurmd for each node, with their files in one folder. */
import { join } from "node:path";

export interface SlurmNode {
  readonly name: string;
  readonly cpus: number;
}

const READY_TIMEOUT_MS = 30_000;
const FOLDERS = ["munge", "state", "spool", "log"];

export class SlurmCluster implements AsyncDisposable {
  readonly directory: string;
  /** For the programs of Slurm. */
  readonly env: Readonly<Record<string, string>>;
  readonly #stack = new AsyncDisposableStack();

  private constructor(directory: string) {
    this.directory = directory;
    this.env = { SLURM_CONF: join(directory, "slurm.conf") };
  }

  /** Rejects, with the daemons' words, if they do not come up. Needs root, for whom munge and Slurm are made. */
  static async start(nodes: readonly SlurmNode[]): Promise<SlurmCluster> {
    // A short path: that of a Unix socket has 107 bytes.
    const cluster = new SlurmCluster(await Deno.makeTempDir({ dir: "/tmp", prefix: "sf-slurm-" }));
    try {
      await cluster.#start(nodes);
      return cluster;
    } catch (cause) {
      const words = await cluster.#logs();
      await cluster[Symbol.asyncDispose]();
      throw new Error(`Slurm does not come up (${cause instanceof Error ? cause.message : cause}):\n${words}`, {
        cause,
      });
    }
  }

  /** What a program of Slurm says. */
  async run(program: string, ...args: string[]): Promise<string> {
    const { stdout } = await new Deno.Command(program, { args, env: this.env, stdin: "null" }).output();
    return new TextDecoder().decode(stdout).trim();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.#stack.disposeAsync();
  }

  async #start(nodes: readonly SlurmNode[]): Promise<void> {
    const { directory } = this;
    this.#stack.defer(() => Deno.remove(directory, { recursive: true }));
    for (const folder of FOLDERS) await Deno.mkdir(join(directory, folder), { mode: 0o700 });
    const ports = freePorts(nodes.length + 1);
    const key = crypto.getRandomValues(new Uint8Array(64));
    await Deno.writeFile(join(directory, "munge/key"), key, { mode: 0o400 });
    await Deno.writeTextFile(join(directory, "slurm.conf"), this.#config(nodes, ports));
    const munge = join(directory, "munge");
    this.#daemon("munged", [
      "--foreground",
      "--force",
      `--key-file=${munge}/key`,
      `--socket=${munge}/socket`,
      `--pid-file=${munge}/pid`,
      `--log-file=${munge}/log`,
      `--seed-file=${munge}/seed`,
    ]);
    await this.#until("munged", async () => (await Deno.stat(`${munge}/socket`)).isSocket === true);
    this.#daemon("slurmctld", ["-D", "-c"]);
    for (const { name } of nodes) this.#daemon("slurmd", ["-D", "-N", name], name);
    const idle = nodes.map(({ name }) => `${name} idle`).join("\n");
    await this.#until("its nodes", async () => await this.run("sinfo", "-h", "-N", "-o", "%N %T") === idle);
  }

  #config(nodes: readonly SlurmNode[], [controller, ...ports]: readonly number[]): string {
    const { directory } = this;
    const host = Deno.hostname().split(".")[0];
    return [
      "ClusterName=test",
      `SlurmctldHost=${host}(127.0.0.1)`,
      `SlurmctldPort=${controller}`,
      "SlurmUser=root",
      "SlurmdUser=root",
      "AuthType=auth/munge",
      `AuthInfo=socket=${directory}/munge/socket`,
      "CredType=cred/munge",
      `StateSaveLocation=${directory}/state`,
      `SlurmdSpoolDir=${directory}/spool/%n`,
      `SlurmctldPidFile=${directory}/controller.pid`,
      `SlurmdPidFile=${directory}/%n.pid`,
      "ProctrackType=proctrack/pgid",
      "TaskPlugin=task/none",
      "SwitchType=switch/none",
      "MpiDefault=none",
      "SelectType=select/cons_tres",
      "SelectTypeParameters=CR_Core",
      // As many CPUs as it says below, whatever this machine has.
      "SlurmdParameters=config_overrides",
      "SchedulerParameters=sched_interval=1,batch_sched_delay=0,sched_min_interval=1",
      "ReturnToService=2",
      ...nodes.map(({ name, cpus }, at) =>
        `NodeName=${name} NodeHostname=${host} NodeAddr=127.0.0.1 Port=${ports[at]} CPUs=${cpus}`
      ),
      `PartitionName=test Nodes=${nodes.map(({ name }) => name).join(",")} Default=YES MaxTime=INFINITE State=UP`,
      "",
    ].join("\n");
  }

  #daemon(program: string, args: readonly string[], name = program): void {
    const log = Deno.openSync(join(this.directory, "log", name), { create: true, write: true });
    const child = new Deno.Command(program, {
      args: [...args],
      env: this.env,
      stdin: "null",
      stdout: "piped",
      stderr: "piped",
    }).spawn();
    const written = (async () => {
      using _ = log;
      await child.stdout.cancel();
      for await (const chunk of child.stderr) log.writeSync(chunk);
    })();
    this.#stack.defer(async () => {
      try {
        child.kill("SIGKILL");
      } catch (error) {
        // It has ended by itself.
        if (!(error instanceof TypeError)) throw error;
      }
      await child.status;
      await written;
    });
  }

  async #until(what: string, isSo: () => Promise<boolean>): Promise<void> {
    const deadline = performance.now() + READY_TIMEOUT_MS;
    while (true) {
      try {
        if (await isSo()) return;
      } catch (error) {
        if (!(error instanceof Deno.errors.NotFound)) throw error;
      }
      if (performance.now() > deadline) throw new Error(`no sign of ${what} for ${READY_TIMEOUT_MS} ms`);
      await new Promise((resolve) => setTimeout(resolve, 200));
    }
  }

  async #logs(): Promise<string> {
    const folder = join(this.directory, "log");
    const texts = await Array.fromAsync(
      Deno.readDir(folder),
      async ({ name }) => `${name}: ${(await Deno.readTextFile(join(folder, name))).slice(-2000)}`,
    );
    return texts.join("\n");
  }
}

function freePorts(count: number): number[] {
  const listeners = Array.from({ length: count }, () => Deno.listen({ hostname: "127.0.0.1", port: 0 }));
  try {
    return listeners.map((listener) => listener.addr.port);
  } finally {
    for (const listener of listeners) listener.close();
  }
}
