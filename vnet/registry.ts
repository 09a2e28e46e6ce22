/**
 * Which family holds which VXLAN id. Hosts agree by construction: the range is cut into a fixed number of slices
 * ({@link sliceOf}) and the fleet's configuration gives each host a slot of its own for good; the host that a family is
 * born on takes an id from its own slice and tells it to every other host with the ticket. So no two hosts can hand out
 * one id, without a word between them, and hosts that join or leave move no slice.
 * A fleet that would rather share one pool gives {@link allocateVni} a {@link Registry} of its own (a database, leases).
 */
import { PlanRangeError, type VniRange } from "./plan.ts";

export interface Registry {
  /**
   * In one step: the id that the family holds already, whichever it is; else `vni`, if nobody holds it, now held by the
   * family; else undefined.
   */
  claim(vni: number, familyId: string): Promise<number | undefined>;
  release(familyId: string): Promise<void>;
}

/** A probe each for this many ids at most: over that the pool counts as exhausted. */
const MAX_PROBES = 65_536;

/**
 * Takes an id for the family: hash and probe, so that ids spread over the range and a released one is not given out again
 * at once. Idempotent. A step without a common divisor visits every id of the range once.
 *
 * @throws PlanRangeError when every id probed is taken.
 */
export async function allocateVni(registry: Registry, range: VniRange, familyId: string): Promise<number> {
  const size = range.last - range.first + 1;
  const digest = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(familyId));
  const words = new DataView(digest);
  let step = 1 + words.getUint32(4) % size;
  while (greatestCommonDivisor(step, size) !== 1) step++;
  const probes = Math.min(size, MAX_PROBES);
  for (let probe = 0, at = words.getUint32(0) % size; probe < probes; probe++, at = (at + step) % size) {
    const held = await registry.claim(range.first + at, familyId);
    if (held !== undefined) return held;
  }
  throw new PlanRangeError(
    `No VXLAN id for family ${familyId}: all ${probes} tried of ${range.first} to ${range.last} are taken; ` +
      `widen the fleet's range or end a family`,
  );
}

/** The part of the range that the host in slot `slot` (from 0) of `slots` hands out. Slices are disjoint and cover it. */
export function sliceOf(range: VniRange, slot: number, slots: number): VniRange {
  const size = range.last - range.first + 1;
  if (!Number.isInteger(slots) || slots < 1 || !Number.isInteger(slot) || slot < 0 || slot >= slots) {
    throw new PlanRangeError(`Slot ${slot} is not one of ${slots}`);
  }
  if (size < slots) throw new PlanRangeError(`${size} VXLAN ids cannot be cut into ${slots} slices`);
  const edge = (index: number) => range.first + Math.floor(size * index / slots);
  return { first: edge(slot), last: edge(slot + 1) - 1 };
}

/** The ids that this host has handed out. `held` is what it had before a restart (the agent's journal). */
export class LocalRegistry implements Registry {
  readonly #families = new Map<number, string>();
  readonly #vnis = new Map<string, number>();

  constructor(held: Iterable<readonly [familyId: string, vni: number]> = []) {
    for (const [familyId, vni] of held) {
      if (this.#families.has(vni) || this.#vnis.has(familyId)) {
        throw new PlanRangeError(`VXLAN id ${vni} or family ${familyId} is held twice`);
      }
      this.#families.set(vni, familyId);
      this.#vnis.set(familyId, vni);
    }
  }

  claim(vni: number, familyId: string): Promise<number | undefined> {
    const held = this.#vnis.get(familyId);
    if (held !== undefined) return Promise.resolve(held);
    if (this.#families.has(vni)) return Promise.resolve(undefined);
    this.#families.set(vni, familyId);
    this.#vnis.set(familyId, vni);
    return Promise.resolve(vni);
  }

  release(familyId: string): Promise<void> {
    const vni = this.#vnis.get(familyId);
    if (vni !== undefined) this.#families.delete(vni);
    this.#vnis.delete(familyId);
    return Promise.resolve();
  }

  /** For the journal: what to give the next constructor. */
  entries(): [familyId: string, vni: number][] {
    return [...this.#vnis];
  }
}

function greatestCommonDivisor(a: number, b: number): number {
  while (b !== 0) [a, b] = [b, a % b];
  return a;
}
