/** The agent in dom0 of a lab host: the built binary, as its users install it, and the calls they make. */
import { ApiClient } from "../../agent/api/client.ts";
import type { CloneInfo, TicketInfo } from "../../agent/api/engine.ts";
import type { Host } from "../lab/mod.ts";
import { build } from "../tools/build.ts";

const BINARY = "/usr/local/bin/snowflock";
const LOG = "/var/log/snowflock.log";
const SOCKET = "/run/snowflock/agent.sock";
const STARTED_TIMEOUT_MS = 120_000;

const ROOT = new URL("../..", import.meta.url).pathname;
/** The binary is made once a process. */
let built: Promise<string> | undefined;

async function binary(): Promise<string> {
  const output = `${ROOT}dist/snowflock`;
  await build({ root: ROOT, output, gzipLevel: 1 });
  return output;
}

export class LabAgent implements AsyncDisposable {
  readonly host: Host;
  #pid: number | undefined;
  #api: ApiClient | undefined;
  #stack = new AsyncDisposableStack();

  private constructor(host: Host) {
    this.host = host;
  }

  /** Installs the binary in dom0 and starts the agent. */
  static async start(host: Host): Promise<LabAgent> {
    built ??= binary();
    await host.copyTo(await built, BINARY);
    await host.run(`chmod 755 ${BINARY}; mkdir -p /etc/snowflock; cat > /etc/snowflock/agent.yaml`, {
      input: JSON.stringify({ host: `h${host.number}` }),
    });
    const agent = new LabAgent(host);
    await agent.run();
    return agent;
  }

  /** Starts an agent on each host; they end with `stack`. */
  static async startAll(hosts: readonly Host[], stack: AsyncDisposableStack): Promise<LabAgent[]> {
    const agents: LabAgent[] = [];
    for (const host of hosts) agents.push(stack.use(await LabAgent.start(host)));
    return agents;
  }

  /** Starts the agent's process and waits until it answers. */
  async run(): Promise<void> {
    const { stdout } = await this.host.run(
      `rm -f ${SOCKET} ${LOG}; setsid ${BINARY} agent </dev/null >>${LOG} 2>&1 & echo $!`,
    );
    const pid = Number(stdout.trim());
    this.#pid = pid;
    const deadline = performance.now() + STARTED_TIMEOUT_MS;
    while ((await this.host.run(`[ -S ${SOCKET} ] && grep -q ready ${LOG}`, { check: false })).status !== 0) {
      if (performance.now() > deadline) throw new Error(`the agent does not answer:\n${await this.log()}`);
      if ((await this.host.run(`kill -0 ${pid}`, { check: false })).status !== 0) {
        throw new Error(`the agent has ended:\n${await this.log()}`);
      }
      await new Promise((resolve) => setTimeout(resolve, 300));
    }
    const tunnel = this.#stack.use(await this.host.forward(SOCKET));
    this.#api = this.#stack.use(new ApiClient(new URL(`http://127.0.0.1:${tunnel.port}`)));
  }

  /** The agent's API, through ssh. */
  get api(): ApiClient {
    if (this.#api === undefined) throw new Error("the agent does not run");
    return this.#api;
  }

  /** Sends the agent a signal and waits for its end. */
  async end(signal: "TERM" | "KILL"): Promise<void> {
    if (this.#pid === undefined) return;
    const pid = this.#pid;
    this.#pid = undefined;
    this.#api = undefined;
    await this.#stack.disposeAsync();
    this.#stack = new AsyncDisposableStack();
    await this.host.run(`kill -${signal} -- -${pid} || kill -${signal} ${pid}`, { check: false });
    const deadline = performance.now() + 60_000;
    while ((await this.host.run(`kill -0 ${pid}`, { check: false })).status === 0) {
      if (performance.now() > deadline) throw new Error(`the agent does not end:\n${await this.log()}`);
      await new Promise((resolve) => setTimeout(resolve, 200));
    }
  }

  /** A command of the binary, with `--json`; rejects with what it printed if it fails. */
  async call<T>(...words: string[]): Promise<T> {
    const command = [BINARY, ...words, "--json"].map((word) => `'${word.replaceAll("'", `'\\''`)}'`).join(" ");
    const { status, stdout, stderr } = await this.host.run(command, { check: false });
    if (status !== 0) {
      throw new Error(`snowflock ${words.join(" ")} failed (${status}): ${stderr.trim()}${stdout.trim()}`);
    }
    return JSON.parse(stdout) as T;
  }

  async ticket(name: string): Promise<TicketInfo> {
    const shown = await this.api.show(name);
    if (!("clones" in shown)) throw new Error(`${name} is no ticket`);
    return shown;
  }

  async clones(ticket: string): Promise<readonly CloneInfo[]> {
    return (await this.ticket(ticket)).clones;
  }

  /** Waits until a ticket's clones are as wanted. */
  async until(
    ticket: string,
    wanted: (clones: readonly CloneInfo[]) => boolean,
    timeoutMs: number,
  ): Promise<readonly CloneInfo[]> {
    const deadline = performance.now() + timeoutMs;
    while (true) {
      const clones = await this.clones(ticket);
      if (wanted(clones)) return clones;
      if (performance.now() > deadline) throw new Error(`${JSON.stringify(clones)}\n${await this.log()}`);
      await new Promise((resolve) => setTimeout(resolve, 500));
    }
  }

  async log(): Promise<string> {
    return (await this.host.run(`tail -n 40 ${LOG}`, { check: false })).stdout;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.end("TERM");
  }
}
