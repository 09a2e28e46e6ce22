/** Network namespaces of the benchmark's own: one with a bridge, one for each node, a veth pair between. Needs root. */

async function run(command: string, ...args: string[]): Promise<string> {
  const { success, stdout, stderr } = await new Deno.Command(command, { args, stdout: "piped", stderr: "piped" })
    .output();
  if (!success) throw new Error(`${command} ${args.join(" ")}: ${new TextDecoder().decode(stderr).trim()}`);
  return new TextDecoder().decode(stdout);
}

export class BenchNetwork implements AsyncDisposable {
  readonly #prefix: string;
  readonly #spaces: string[] = [];

  private constructor(prefix: string) {
    this.#prefix = prefix;
  }

  /**
   * Node 0 is the server; `lossPercent` of the packets to and from each of the others is dropped at its side. Without `offload`
   * packets have the wire's size between the namespaces too, as behind a real card: what is lost is one of these, and each is counted
   * with its headers. With it, TCP's go in pieces of 64 KiB.
   */
  static async open(nodes: number, lossPercent: number, offload: boolean): Promise<BenchNetwork> {
    const network = new BenchNetwork(`sfbench${Deno.pid}`);
    try {
      const bridge = await network.#space("bridge");
      await run("ip", "-n", bridge, "link", "add", "br0", "type", "bridge", "mcast_snooping", "0");
      await run("ip", "-n", bridge, "link", "set", "br0", "up");
      for (let node = 0; node < nodes; node++) await network.#node(bridge, node, node === 0 ? 0 : lossPercent, offload);
      return network;
    } catch (error) {
      await network[Symbol.asyncDispose]();
      throw error;
    }
  }

  address(node: number): string {
    return `10.99.0.${node + 1}`;
  }

  /** A command to be run in a node's namespace. */
  command(node: number, command: string, args: string[], options: Deno.CommandOptions): Deno.Command {
    return new Deno.Command("ip", { args: ["netns", "exec", this.#name(node), command, ...args], ...options });
  }

  /** Bytes that the server's interface sent so far, headers included. */
  async serverBytes(): Promise<number> {
    const text = await run("ip", "netns", "exec", this.#name(0), "cat", "/sys/class/net/eth0/statistics/tx_bytes");
    return Number(text);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const space of this.#spaces.reverse()) await run("ip", "netns", "del", space);
    this.#spaces.length = 0;
  }

  #name(node: number): string {
    return `${this.#prefix}n${node}`;
  }

  async #space(name: string): Promise<string> {
    const space = `${this.#prefix}${name}`;
    await run("ip", "netns", "add", space);
    this.#spaces.push(space);
    return space;
  }

  async #node(bridge: string, node: number, lossPercent: number, offload: boolean): Promise<void> {
    const space = await this.#space(`n${node}`);
    const port = `p${node}`;
    await run("ip", "-n", space, "link", "add", "eth0", "type", "veth", "peer", "name", port, "netns", bridge);
    await run("ip", "-n", bridge, "link", "set", port, "master", "br0", "up");
    await run("ip", "-n", space, "addr", "add", `${this.address(node)}/24`, "brd", "+", "dev", "eth0");
    if (!offload) await run("ip", "-n", space, "link", "set", "eth0", "gso_max_segs", "1");
    await run("ip", "-n", space, "link", "set", "lo", "up");
    await run("ip", "-n", space, "link", "set", "eth0", "up");
    await run("ip", "-n", space, "route", "add", "224.0.0.0/4", "dev", "eth0");
    if (lossPercent === 0) return;
    await dropSome(bridge, port, lossPercent);
    await dropSome(space, "eth0", lossPercent);
  }
}

/**
 * Drops a share of what a device of the namespace receives: by nftables, since not every kernel has netem. At the ingress, where the
 * sender cannot know of it.
 */
async function dropSome(space: string, device: string, percent: number): Promise<void> {
  const chain = `{ type filter hook ingress device ${device} priority 0; }`;
  const nft = (...args: string[]) => run("ip", "netns", "exec", space, "nft", ...args);
  await nft("add", "table", "netdev", `loss_${device}`);
  await nft("add", "chain", "netdev", `loss_${device}`, "ingress", chain);
  const share = ["numgen", "random", "mod", "10000", "<", String(Math.round(percent * 100))];
  await nft("add", "rule", "netdev", `loss_${device}`, "ingress", "meta", "protocol", "ip", ...share, "drop");
}
