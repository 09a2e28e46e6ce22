/** The networks of this host's families: made, joined, left, shown, removed. */
import { parseNetwork4 } from "./addresses.ts";
import { command, type CommandRunner, readRules } from "./commands.ts";
import { ensureDhcp } from "./dhcp.ts";
import { type GuestIdentity, guestIdentity } from "./identity.ts";
import { KeyedQueue } from "./keyed_queue.ts";
import { memberChainName, type RejectPlace } from "./member_rules.ts";
import { BRIDGE, type HostNaming, Naming, type NetworkNames, OVERLAY, UPLINK_INNER } from "./names.ts";
import { blockedPackets, differenceFrom, type Table } from "./nft_text.ts";
import { AddressPlan, type Family, type FamilyPlan, type FleetRanges, type MemberAddresses } from "./plan.ts";
import { findTraces, removeNetwork } from "./removal.ts";
import { familyTables, hostTable, type LocalMember, renderFamily, renderHost } from "./ruleset.ts";
import {
  addOverlay,
  adoptVifs,
  buildSegment,
  cloneIdOfLink,
  findRejectPlace,
  listNamespaces,
  overlayAlias,
  raiseSegment,
  readSegment,
  releaseVif,
  removeOverlay,
  type SegmentState,
  setNeighbours,
  setPeers,
} from "./segment.ts";
import { checkDevice, checkSettings, egressOpen, type NetworkOptions, type Settings, settingsOf } from "./settings.ts";
import { readStateFile, writeStateFile } from "./state_files.ts";
import { ensureUplink, removeUplink } from "./uplink.ts";

/** Why a family's network cannot do what was asked. Branch on `code`. */
export class FamilyNetworkError extends Error {
  override readonly name = "FamilyNetworkError";
  /**
   * `absent`: the family has no network here; `conflict`: id, clone or vif belongs to another; `unverified`: the kernel does
   * not show what was asked of it.
   */
  readonly code: "absent" | "conflict" | "unverified";

  constructor(code: FamilyNetworkError["code"], message: string, options?: ErrorOptions) {
    super(message, options);
    this.code = code;
  }
}

export interface FamilyNetworkOptions extends HostNaming {
  readonly runner: CommandRunner;
  readonly ranges: FleetRanges;
  /** IPv4 network whose /31s join families' namespaces to the host's; used on this host only. "100.127.0.0/16". */
  readonly uplinks?: string;
}

export interface ShownMember extends MemberAddresses {
  readonly device: string;
  readonly up: boolean;
  /** Frames that the member was not allowed to send, since the rules last changed. */
  readonly blocked: number;
}

export interface ShownNetwork extends FamilyPlan {
  readonly namespace: string;
  readonly settings: Settings;
  readonly members: readonly ShownMember[];
}

/** All in one queue a family, and each to its end: callers need no order of their own. */
export class FamilyNetwork {
  readonly plan: AddressPlan;
  readonly #runner: CommandRunner;
  readonly #naming: Naming;
  readonly #uplinks: string;
  readonly #queue = new KeyedQueue();
  /** Of the kernel, so asked once. */
  #rejects: RejectPlace | undefined;

  constructor(options: FamilyNetworkOptions) {
    this.plan = new AddressPlan(options.ranges);
    this.#runner = options.runner;
    this.#naming = new Naming(options);
    this.#uplinks = options.uplinks ?? "100.127.0.0/16";
    parseNetwork4(this.#uplinks);
  }

  /** Text for a guest's `data/snowflock/` and its vif's `mac`. */
  guestIdentity(family: Family, cloneId: number, options: { hostname?: string; mtu?: number } = {}): GuestIdentity {
    return guestIdentity(this.plan, family, cloneId, options);
  }

  /**
   * Makes the family's network on this host, or brings one that is there to these options; members stay. A network that could
   * not be finished is removed again.
   *
   * @throws SettingsError, PlanRangeError, FamilyNetworkError, CommandError
   */
  async ensure(family: Family, options: NetworkOptions): Promise<void> {
    const plan = this.plan.family(family);
    const settings = settingsOf(options);
    const names = this.#naming.of(family.vni);
    await this.#queue.run(family.vni, async () => {
      let state = await this.#find(names, family);
      const created = state === undefined;
      try {
        await writeStateFile(this.#runner, names, "settings.json", JSON.stringify(settings));
        if (created) await buildSegment(this.#runner, names, plan, settings);
        else if (state?.links.find(({ device }) => device === OVERLAY)?.alias !== overlayAlias(settings)) {
          await removeOverlay(this.#runner, names);
          await addOverlay(this.#runner, names, plan, settings);
        }
        state = await this.#read(names);
        await this.#apply(names, plan, settings, state);
      } catch (error) {
        if (!created) throw error;
        await undo(error, () => removeNetwork(this.#runner, names));
      }
    });
  }

  /** {@link addMembers} of one. */
  async addMember(family: Family, cloneId: number, vifName: string): Promise<MemberAddresses> {
    await this.addMembers(family, [{ cloneId, vifName }]);
    return this.plan.member(family, cloneId);
  }

  /**
   * Puts vifs of the host's namespace into the family as the clones', many in the time of one. Idempotent; vifs that were not
   * members before go back to the host if it fails.
   *
   * @throws FamilyNetworkError `absent` before {@link ensure}, `conflict` for a clone with another vif, or a vif of another.
   */
  async addMembers(family: Family, joining: readonly { cloneId: number; vifName: string }[]): Promise<void> {
    const plan = this.plan.family(family);
    const members = joining.map(({ cloneId, vifName }): LocalMember => {
      if ([BRIDGE, OVERLAY, UPLINK_INNER, "lo"].includes(checkDevice(vifName))) {
        throw new FamilyNetworkError("conflict", `${vifName} is the network's own device, no clone's`);
      }
      return { ...this.plan.member(family, cloneId), device: vifName };
    });
    const names = this.#naming.of(family.vni);
    await this.#queue.run(family.vni, async () => {
      const { state, settings } = await this.#open(names, family);
      const owners = new Map(state.links.map((link) => [link.device, cloneIdOfLink(link)]));
      for (const { device, cloneId } of members) {
        const owner = owners.get(device) ?? cloneId;
        const other = [...owners].find(([name, id]) => id === cloneId && name !== device);
        if (owner !== cloneId || other !== undefined) {
          const has = owner === cloneId ? `clone ${cloneId} has ${other?.[0]}` : `${device} is clone ${owner}'s`;
          throw new FamilyNetworkError(
            "conflict",
            `Cannot give ${device} to clone ${cloneId} of family ${family.id}: ${has}`,
          );
        }
        owners.set(device, cloneId);
      }
      const linkOf = (device: string) => state.links.find((link) => link.device === device);
      try {
        await adoptVifs(this.#runner, names, members.map((member) => ({ member, link: linkOf(member.device) })));
        await this.#apply(names, plan, settings, await this.#read(names));
      } catch (error) {
        const fresh = members.filter(({ device }) => linkOf(device) === undefined);
        await undo(error, () => this.#release(names, plan, settings, fresh.map(({ device }) => device)));
      }
    });
  }

  /**
   * Gives the clone's vif back to the host, if its domain has not taken it along already. With its last member the family's
   * network goes too. True if it has gone.
   */
  async removeMember(family: Family, cloneId: number): Promise<boolean> {
    const plan = this.plan.family(family);
    const names = this.#naming.of(family.vni);
    return await this.#queue.run(family.vni, async () => {
      const found = await this.#find(names, family);
      if (found === undefined) return true;
      const { state, settings } = await this.#open(names, family);
      const others = state.links.filter((link) => (cloneIdOfLink(link) ?? cloneId) !== cloneId);
      if (others.length === 0) {
        await removeNetwork(this.#runner, names);
        return true;
      }
      const own = state.links.find((link) => cloneIdOfLink(link) === cloneId);
      if (own !== undefined) await releaseVif(this.#runner, names, own.device);
      await this.#apply(names, plan, settings, await this.#read(names));
      return false;
    });
  }

  /** Removes the family's network from this host, members' vifs going back to the host. Nothing where there is none. */
  async remove(family: Family): Promise<void> {
    const names = this.#naming.of(family.vni);
    await this.#queue.run(family.vni, async () => {
      if (await this.#find(names, family) !== undefined) await removeNetwork(this.#runner, names);
    });
  }

  /** What the kernel holds of the family. @throws FamilyNetworkError `absent` */
  async show(family: Family): Promise<ShownNetwork> {
    const plan = this.plan.family(family);
    const names = this.#naming.of(family.vni);
    return await this.#queue.run(family.vni, async () => {
      const { state, settings } = await this.#open(names, family);
      const blocked = blockedPackets(await readRules(this.#runner, ["ruleset"], names.namespace));
      const members = this.#members(family, state).map(({ device, ...addresses }): ShownMember => ({
        ...addresses,
        device,
        up: state.links.some((link) => link.device === device && link.up),
        blocked: blocked.get(memberChainName(addresses.cloneId)) ?? 0,
      }));
      return { ...plan, namespace: names.namespace, settings, members };
    });
  }

  /** Removes everything of families that are not among `live`: what an agent left that died. Names of what was removed. */
  async sweep(live: Iterable<Family>): Promise<string[]> {
    const keep = new Map([...live].map(({ id, vni }) => [vni, id]));
    const removed: string[] = [];
    for (const vni of await findTraces(this.#runner, this.#naming)) {
      const names = this.#naming.of(vni);
      await this.#queue.run(vni, async () => {
        const id = (await listNamespaces(this.#runner)).includes(names.namespace)
          ? (await readSegment(this.#runner, names))?.familyId
          : undefined;
        if (keep.has(vni) && keep.get(vni) === id) return;
        await removeNetwork(this.#runner, names);
        removed.push(names.namespace);
      });
    }
    return removed;
  }

  /** The family's finished network, or undefined; an unfinished one is removed. @throws FamilyNetworkError `conflict` */
  async #find(names: NetworkNames, family: Family): Promise<SegmentState | undefined> {
    if (!(await listNamespaces(this.#runner)).includes(names.namespace)) return undefined;
    const state = await readSegment(this.#runner, names);
    if (state?.familyId === family.id) return state;
    if (state !== null && state.familyId !== null) {
      throw new FamilyNetworkError(
        "conflict",
        `VXLAN id ${family.vni} of family ${family.id} is in use by family ${state.familyId} on this host`,
      );
    }
    await removeNetwork(this.#runner, names);
    return undefined;
  }

  async #open(names: NetworkNames, family: Family): Promise<{ state: SegmentState; settings: Settings }> {
    const state = await this.#find(names, family);
    const text = state === undefined ? null : await readStateFile(this.#runner, names, "settings.json");
    if (state === undefined || text === null) {
      throw new FamilyNetworkError("absent", `Family ${family.id} has no network on this host`);
    }
    return { state, settings: checkSettings(JSON.parse(text)) };
  }

  async #read(names: NetworkNames): Promise<SegmentState> {
    const state = await readSegment(this.#runner, names);
    if (state === null) throw new FamilyNetworkError("unverified", `${names.namespace} is not there`);
    return state;
  }

  #members(family: Family, state: SegmentState): LocalMember[] {
    return state.links.flatMap((link) => {
      const cloneId = cloneIdOfLink(link);
      return cloneId === undefined || !link.bridged
        ? []
        : [{ ...this.plan.member(family, cloneId), device: link.device }];
    }).sort((a, b) => a.cloneId - b.cloneId);
  }

  /** Brings rules, peers, way out and DHCP to the settings and the members that are there; then looks whether it is so. */
  async #apply(names: NetworkNames, plan: FamilyPlan, settings: Settings, state: SegmentState): Promise<void> {
    const runner = this.#runner;
    const members = this.#members(plan.family, state);
    this.#rejects ??= await findRejectPlace(runner, names);
    const inside = familyTables(plan, settings, members, this.#rejects);
    // One host-wide step: addresses of uplinks must not be taken twice.
    const uplink = await this.#queue.run("uplinks", async () => {
      if (egressOpen(settings)) return await ensureUplink(runner, names, this.#uplinks);
      await removeUplink(runner, names);
      return null;
    });
    const outside = hostTable(plan, settings, names, uplink);
    await command(runner, `set the rules of family ${plan.family.id}`, ["nft", "-f", "-"], {
      input: renderFamily(inside),
      namespace: names.namespace,
    });
    const host = `set the host's rules for family ${plan.family.id}`;
    await command(runner, host, ["nft", "-f", "-"], { input: renderHost(outside) });
    await setPeers(runner, names, settings);
    await setNeighbours(runner, names, members);
    await raiseSegment(runner, names, plan, settings, members);
    await ensureDhcp(runner, names, plan, settings, members);
    await this.#verify(names, plan, settings, members, inside, outside);
  }

  async #verify(
    names: NetworkNames,
    plan: FamilyPlan,
    settings: Settings,
    members: readonly LocalMember[],
    inside: readonly Table[],
    outside: Table,
  ): Promise<void> {
    const fail = (what: string) => {
      throw new FamilyNetworkError("unverified", `The network of family ${plan.family.id} is not as asked: ${what}`);
    };
    const state = await this.#read(names);
    if (state.familyId !== plan.family.id) fail("its bridge is not marked");
    for (const device of [BRIDGE, OVERLAY, ...members.map((member) => member.device)]) {
      const link = state.links.find((link) => link.device === device);
      if (link === undefined || !link.up || link.mtu !== settings.mtu) {
        fail(`${device} is missing, down or of another MTU`);
      } else if (device !== BRIDGE && !link.bridged) fail(`${device} is not on the bridge`);
      else if (device === OVERLAY && link.vni !== plan.family.vni) fail(`${device} has the VXLAN id ${link.vni}`);
    }
    const difference = differenceFrom(inside, await readRules(this.#runner, ["ruleset"], names.namespace)) ??
      differenceFrom([outside], await readRules(this.#runner, ["table", "inet", names.hostTable]));
    if (difference !== undefined) fail(difference);
  }

  async #release(names: NetworkNames, plan: FamilyPlan, settings: Settings, devices: readonly string[]): Promise<void> {
    for (const { device } of (await this.#read(names)).links) {
      if (devices.includes(device)) await releaseVif(this.#runner, names, device);
    }
    await this.#apply(names, plan, settings, await this.#read(names));
  }
}

/** Undoes what had been done when `error` came up, and throws it on; with what went wrong in the undoing, if anything. */
async function undo(error: unknown, task: () => Promise<void>): Promise<never> {
  try {
    await task();
  } catch (second) {
    throw new AggregateError([error, second], `${String(error)}; and then, undoing it: ${String(second)}`);
  }
  throw error;
}
