/**
 * Two hosts, a stranger and an outside server on one network, all of them network namespaces of this machine with names of
 * their own: nothing else of the machine is touched. Members are namespaces whose veth plays the vif.
 */
import { batch, command, type CommandRunner, readJson, textOf } from "../commands.ts";
import { FamilyNetwork } from "../family_network.ts";
import type { Family, FleetRanges, MemberAddresses } from "../plan.ts";
import type { NetworkOptions } from "../settings.ts";

export interface Station {
  readonly namespace: string;
  readonly address: string;
  readonly mac: string;
}

export interface TestHost extends Station {
  readonly runner: CommandRunner;
  readonly network: FamilyNetwork;
  readonly prefix: string;
  readonly stateDirectory: string;
}

/** A member's namespace; its device is `eth0`. */
export interface TestMember extends MemberAddresses {
  readonly host: TestHost;
  readonly family: Family;
  readonly namespace: string;
  readonly vif: string;
}

/** Runs in the namespace that plays the host, or in this process's own where none is named. */
export type RunnerOf = (hostNamespace?: string) => CommandRunner;

const UNDERLAY = "10.99.0";

export class NamespaceFleet implements AsyncDisposable {
  readonly tag: string;
  readonly outer: CommandRunner;
  readonly ranges: FleetRanges;
  readonly a: TestHost;
  readonly b: TestHost;
  readonly stranger: Station;
  readonly world: Station;
  #members = 0;

  private constructor(runnerOf: RunnerOf, ranges: FleetRanges, directory: string) {
    // Process and time: two runs on one machine do not meet.
    this.tag = (Deno.pid * 997 + Date.now() % 99_991).toString(36).slice(-4);
    this.outer = runnerOf();
    this.ranges = ranges;
    const station = (name: string, last: number): Station => ({
      namespace: `${this.tag}-sftest-${name}`,
      address: `${UNDERLAY}.${last}`,
      mac: `02:00:00:00:00:${last.toString(16).padStart(2, "0")}`,
    });
    const host = (name: string, last: number): TestHost => {
      const here = station(name, last);
      const prefix = `s${name}${this.tag}-`;
      const stateDirectory = `${directory}/${name}`;
      const runner = runnerOf(here.namespace);
      return {
        ...here,
        prefix,
        stateDirectory,
        runner,
        network: new FamilyNetwork({ runner, ranges, prefix, stateDirectory }),
      };
    };
    this.a = host("a", 1);
    this.b = host("b", 2);
    this.stranger = station("stranger", 66);
    this.world = station("world", 9);
  }

  static async create(runnerOf: RunnerOf, ranges: FleetRanges, directory: string): Promise<NamespaceFleet> {
    const fleet = new NamespaceFleet(runnerOf, ranges, directory);
    try {
      await fleet.#build();
    } catch (error) {
      await fleet[Symbol.asyncDispose]();
      throw error;
    }
    return fleet;
  }

  async #build(): Promise<void> {
    const lan = `${this.tag}-sftest-lan`;
    const stations = [this.a, this.b, this.stranger, this.world];
    await batch(
      this.outer,
      "make the test's namespaces",
      "ip",
      [lan, ...stations.map((s) => s.namespace)].map((name) => `netns add ${name}`),
    );
    await batch(this.outer, "build the test's network", "ip", ["link add lan0 type bridge", "link set lan0 up"], lan);
    for (const [index, { namespace, address, mac }] of stations.entries()) {
      const port = `port${index}`;
      await batch(this.outer, "build the test's network", "ip", [
        `link add ${port} netns ${lan} type veth peer name eth0 address ${mac} netns ${namespace}`,
      ]);
      await batch(
        this.outer,
        "build the test's network",
        "ip",
        [`link set ${port} master lan0`, `link set ${port} up`],
        lan,
      );
      await command(this.outer, "quieten IPv6", ["sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/eth0/disable_ipv6"], {
        namespace,
      });
      await batch(this.outer, "build the test's network", "ip", [
        "link set lo up",
        `addr add ${address}/24 dev eth0`,
        "link set eth0 up",
      ], namespace);
    }
  }

  options(host: TestHost, more: Partial<NetworkOptions> = {}): NetworkOptions {
    const peer = host === this.a ? this.b : this.a;
    return { underlay: { device: "eth0", address: host.address }, peers: [peer.address], ...more };
  }

  /** A namespace and its vif in the host's; not yet in the family. `configured`: it has its addresses and its route. */
  async makeMember(host: TestHost, family: Family, cloneId: number, configured = true): Promise<TestMember> {
    const index = this.#members++;
    const namespace = `${this.tag}-sftest-m${index}`;
    const vif = `vif${index}.0`;
    const addresses = host.network.plan.member(family, cloneId);
    const { gateway4, prefixLength4 } = host.network.plan.family(family);
    await batch(this.outer, "make a member", "ip", [
      `netns add ${namespace}`,
      `link add ${vif} netns ${host.namespace} type veth peer name eth0 address ${addresses.mac} netns ${namespace}`,
    ]);
    // Without the wait for duplicate addresses, as it is short of a second; a guest at boot has it.
    const quick =
      "for f in accept_dad=0 router_solicitation_delay=0; do echo ${f#*=} > /proc/sys/net/ipv6/conf/eth0/${f%%=*}; done; " +
      `echo ${configured ? 0 : 1} > /proc/sys/net/ipv6/conf/eth0/accept_ra`;
    await command(this.outer, "make a member", ["sh", "-c", quick], { namespace });
    await batch(this.outer, "make a member", "ip", [
      "link set lo up",
      ...(configured
        ? [`addr add ${addresses.ip4}/${prefixLength4} dev eth0`, `addr add ${addresses.ip6}/64 dev eth0 nodad`]
        : []),
      "link set eth0 up",
      ...(configured ? [`route add default via ${gateway4}`] : []),
    ], namespace);
    return { ...addresses, host, family, namespace, vif };
  }

  async addMember(host: TestHost, family: Family, cloneId: number, configured = true): Promise<TestMember> {
    const member = await this.makeMember(host, family, cloneId, configured);
    await host.network.addMember(family, cloneId, member.vif);
    return member;
  }

  /** A TCP connection from the namespace, and how long it took to fail or to be made. */
  async connect(namespace: string, address: string, port: number): Promise<{ said: string; tookMs: number }> {
    const start = performance.now();
    const script = `exec 3<>/dev/tcp/${address}/${port} && echo connected`;
    const { stdout, stderr } = await this.outer.run(["timeout", "4", "bash", "-c", script], { namespace });
    return { said: stdout + stderr, tookMs: performance.now() - start };
  }

  /** All that a host holds of networks: what must not change, or must be gone. */
  async inventory(host: TestHost): Promise<string> {
    const parts: string[] = [];
    const listed = await readJson(this.outer, "list", ["ip", "-json", "netns", "list"]);
    const namespaces = listed.flatMap((item) => textOf(item, "name") ?? []).filter((name) =>
      name.startsWith(host.prefix)
    );
    for (const namespace of [host.namespace, ...namespaces.sort()]) {
      parts.push(`== ${namespace}`);
      const outputs = await Promise.all([
        ["ip", "-details", "-oneline", "link"],
        ["ip", "-oneline", "addr"],
        ["ip", "route"],
        ["bridge", "fdb", "show"],
        ["ip", "neigh", "show", "nud", "permanent"],
        ["nft", "-s", "list", "ruleset"],
      ].map((argv) => command(this.outer, "list", argv, { namespace })));
      parts.push(...outputs.flatMap((output) => output.split("\n").flatMap(stable).sort()));
    }
    parts.push(
      await command(this.outer, "list", [
        "sh",
        "-c",
        'find "$1" -type f 2>/dev/null | sort',
        "sh",
        host.stateDirectory,
      ]),
    );
    return parts.join("\n");
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const listed = await readJson(this.outer, "list", ["ip", "-json", "netns", "list"]);
    const ours = listed.flatMap((item) => textOf(item, "name") ?? []).filter((name) =>
      name.startsWith(`${this.tag}-sftest-`) || name.startsWith(this.a.prefix) || name.startsWith(this.b.prefix)
    );
    for (const name of ours) {
      await this.outer.run([
        "sh",
        "-c",
        'for p in $(ip netns pids "$1"); do kill "$p"; done; ip netns del "$1"',
        "sh",
        name,
      ]);
    }
  }
}

/** A line of a listing without what the kernel chooses anew each time (numbers, random MACs), or nothing. */
function stable(line: string): string[] {
  if (/offload|self permanent|(overlay|uplink)0 master br0 permanent/.test(line)) return [];
  const changing = /@if\d+|link-netns\S* \S+|state \w+|qdisc \w+|\w+_timer +\S+|[ \\]+/g;
  const carrier = /NO-CARRIER,|,LOWER_UP|,M-DOWN/g;
  const plain = line.replace(/^\d+: /, "").replaceAll(carrier, "").replaceAll(changing, " ");
  const bridge = /\bbr0\b/.test(plain) && !/overlay0|uplink0/.test(plain);
  return [bridge ? plain : plain.replaceAll(/link\/ether \S+/g, "link/ether")];
}
