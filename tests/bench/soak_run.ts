/**
 * One seed of the soak: hosts on a simulated network want the blocks of a server, each for several clones, under faults that the seed
 * picks: loss, repetition, reordering, blocked multicast, small buffers, partitions, receivers that die.
 */
import { type Host, idOf, type Kind, type ObjectModel, SimCluster, source } from "../../multicast/sim_cluster.ts";
import { randomOf } from "../../multicast/sim_network.ts";

export interface SoakOptions {
  readonly seed: number;
  readonly hosts: number;
  readonly clones: number;
  readonly blocks: number;
}

export interface SoakResult {
  readonly simulatedMs: number;
  readonly lossPercent: number;
  readonly dead: number;
  readonly blocksChecked: number;
  readonly datagramsLost: number;
  /** Server bytes for each payload byte of one copy. */
  readonly copies: number;
  readonly mostAssemblies: number;
  readonly mostQueued: number;
}

const FAMILY = idOf(0xfa);
const LIMIT_MS = 300_000;
const ASSEMBLIES = 64;
/** What a server may have queued at most, by its own bounds: two rings and the unicast answers. */
const QUEUE_BOUND = 2 * 65536 + 2048;

interface Plan {
  readonly atMs: number;
  act(): void;
}

/** Throws an Error that names the seed when a block is missing, wrong or doubled, or something outgrows its bound. */
export function soak(options: SoakOptions): SoakResult {
  try {
    return run(options);
  } catch (cause) {
    throw new Error(`Seed ${options.seed} with ${options.hosts} hosts`, { cause });
  }
}

function run({ seed, hosts, clones, blocks }: SoakOptions): SoakResult {
  const random = randomOf(seed);
  const pick = <T>(...choices: T[]): T => choices[Math.floor(random() * choices.length)] as T;
  const loss = pick(0, 0.01, 0.05, 0.1, 0.2);
  using cluster = new SimCluster({
    seed,
    hosts,
    network: {
      loss,
      duplicate: pick(0, 0.05),
      reorder: pick(0, 0.1, 0.3),
      reorderMs: pick(1, 5, 20),
      delayMs: pick(0.05, 0.3, 2),
      multicast: random() < 0.85,
      receiveBuffer: pick(64 << 10, 1 << 20, 8 << 20),
    },
    distribution: { packets: 32, assemblies: ASSEMBLIES, compression: pick("none", "none", "deflate") },
  });
  const kinds = Array.from(
    { length: blocks },
    (): Kind => pick("bytes", "bytes", "text", "zero", random() < 0.1 ? "absent" : "zero"),
  );
  const models: ObjectModel[] = [1, 2].map((number) => ({
    id: idOf(number),
    blocks,
    kind: (index) => kinds[index] ?? "zero",
  }));
  const mode = random() < 0.9 ? "multicast" : "unicast";
  for (const { distribution } of cluster.hosts) {
    distribution.openFamily(FAMILY, { key: new Uint8Array(32).fill(seed), mode });
  }
  for (const model of models) cluster.host(0).distribution.addServed(FAMILY, model.id, blocks, source(model));

  const dead = new Set<Host>();
  const wanted = new Map<Host, Map<ObjectModel, Set<number>>>();
  const plans: Plan[] = [];
  const now = () => cluster.network.nowMs;
  for (const host of cluster.hosts.slice(1)) {
    const sets = new Map(models.map((model) => [model, new Set<number>()]));
    wanted.set(host, sets);
    for (const model of models) cluster.want(host, FAMILY, model, 0);
    for (let clone = 0; clone < clones; clone++) {
      const model = pick(...models);
      const from = Math.floor(random() * blocks);
      const urgent = random() < 0.5;
      const count = urgent ? 1 + Math.floor(random() * 3) : Math.ceil(random() * (blocks - from));
      const indexes = Array.from({ length: count }, (_, at) => (from + at) % blocks);
      plans.push({
        atMs: random() * 40,
        act: () => {
          if (dead.has(host)) return;
          const got = host.got.get(model.id);
          const fresh = indexes.filter((index) => !got?.has(index));
          for (const index of fresh) sets.get(model)?.add(index);
          host.distribution.request(model.id, fresh, { urgent }, now());
        },
      });
    }
    if (random() < 0.1) host.multicast.cut = true;
    if (random() < 0.1) host.unicast.loss = host.multicast.loss = 0.3;
    if (random() < 0.1) partition(host, random() * 30, 10 + random() * 2000);
    if (random() < 0.05) {
      plans.push({
        atMs: random() * 60,
        act: () => {
          dead.add(host);
          host.unicast.cut = host.multicast.cut = true;
          host.distribution[Symbol.dispose]();
        },
      });
    }
  }
  if (random() < 0.1) partition(cluster.host(0), random() * 30, 10 + random() * 3000);

  function partition(host: Host, fromMs: number, forMs: number): void {
    const deaf = host.multicast.cut;
    plans.push({ atMs: fromMs, act: () => void (host.unicast.cut = host.multicast.cut = true) });
    plans.push({
      atMs: fromMs + forMs,
      act: () => {
        if (dead.has(host)) return;
        host.unicast.cut = false;
        host.multicast.cut = deaf;
      },
    });
  }

  plans.sort((a, b) => a.atMs - b.atMs);
  let mostAssemblies = 0;
  let mostQueued = 0;
  let steps = 0;
  const complete = () =>
    [...wanted].every(([host, sets]) =>
      dead.has(host) || [...sets].every(([{ id }, indexes]) => indexes.size === 0 || host.distribution.left(id) === 0)
    );
  const whole = cluster.run(() => {
    while (plans[0] !== undefined && plans[0].atMs <= now()) plans.shift()?.act();
    if (steps++ % 64 === 0) {
      for (const host of cluster.hosts) {
        const stats = host.distribution.stats();
        mostAssemblies = Math.max(mostAssemblies, stats.assemblies);
        mostQueued = Math.max(mostQueued, stats.families[0]?.queued ?? 0);
      }
    }
    return plans.length === 0 && complete();
  }, LIMIT_MS);
  if (!whole) throw new Error(`Blocks are missing after ${LIMIT_MS} ms of simulated time`);
  if (mostAssemblies > ASSEMBLIES || mostQueued > QUEUE_BOUND) throw new Error("A queue outgrew its bound");
  let blocksChecked = 0;
  for (const [host, sets] of wanted) {
    for (const [{ id }, indexes] of sets) {
      const got = host.got.get(id);
      if (dead.has(host)) continue;
      for (const index of indexes) if (!got?.has(index)) throw new Error(`Block ${index} never came`);
      blocksChecked += got?.size ?? 0;
    }
  }
  return {
    simulatedMs: now(),
    lossPercent: loss * 100,
    dead: dead.size,
    blocksChecked,
    datagramsLost: cluster.network.dropped + cluster.network.overflowed,
    copies: cluster.host(0).unicast.sentBytes / (blocks * models.length * 4096),
    mostAssemblies,
    mostQueued,
  };
}
