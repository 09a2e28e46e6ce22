/** Random writes, flushes, forks and power cuts, against a model of what each sector may hold. */
import { deepEqual, equal, ok } from "node:assert/strict";
import fc from "fast-check";
import { checkImage } from "./image_commands.ts";
import { ImagePaths } from "./image_paths.ts";
import { ImageRegistry, type OpenDisk } from "./image_registry.ts";
import { BLOCK_BYTES, SECTOR_BYTES } from "./ports.ts";
import { CrashFiles, PowerCut, seededRandom } from "./testing/crash_files.ts";

/** Three L2 tables' worth, with a last block that is a part. */
const SECTORS = 1100 * 8 + 3;
/** Where the action is: the first sectors, and around the borders of L2 tables and of the disk. */
const PLACES = [0, 511 * 8, 1023 * 8, (1099 - 5) * 8];

type Command =
  | { readonly kind: "write"; readonly place: number; readonly skip: number; readonly sectors: number }
  | { readonly kind: "discard"; readonly place: number; readonly skip: number; readonly sectors: number }
  | { readonly kind: "flush" }
  | { readonly kind: "reopen" }
  | { readonly kind: "fork"; readonly clones: number }
  | { readonly kind: "crash"; readonly seed: number; readonly fuse: number | undefined };

const range = {
  place: fc.constantFrom(...PLACES),
  skip: fc.nat(24),
  sectors: fc.integer({ min: 1, max: 40 }),
};
const oneBlock = { place: range.place, skip: fc.nat(4).map((block) => block * 8), sectors: fc.constant(8) };
const commands: fc.Arbitrary<Command[]> = fc.array(
  fc.oneof(
    { weight: 8, arbitrary: fc.record({ kind: fc.constant("write" as const), ...range }) },
    // Whole blocks one by one: what takes the place of a cluster that a discard has freed.
    { weight: 4, arbitrary: fc.record({ kind: fc.constant("write" as const), ...oneBlock }) },
    { weight: 4, arbitrary: fc.record({ kind: fc.constant("discard" as const), ...oneBlock }) },
    { weight: 1, arbitrary: fc.record({ kind: fc.constant("discard" as const), ...range }) },
    { weight: 3, arbitrary: fc.constant({ kind: "flush" as const }) },
    { weight: 1, arbitrary: fc.constant({ kind: "reopen" as const }) },
    { weight: 2, arbitrary: fc.record({ kind: fc.constant("fork" as const), clones: fc.integer({ min: 1, max: 2 }) }) },
    {
      weight: 3,
      arbitrary: fc.record({
        kind: fc.constant("crash" as const),
        seed: fc.integer(),
        fuse: fc.option(fc.nat(12), { nil: undefined }),
      }),
    },
  ),
  { minLength: 5, maxLength: 40 },
);

/** Each sector's possible contents: the last flushed one first. A content is a number, repeated through the sector. */
class Model {
  readonly possible: number[][];

  constructor(from?: Model) {
    this.possible = from ? from.possible.map((values) => [...values]) : Array.from({ length: SECTORS }, () => [0]);
  }
  set(sector: number, value: number): void {
    this.possible[sector]?.push(value);
  }
  settle(): void {
    for (const values of this.possible) values.splice(0, values.length - 1);
  }
}

/** Reads all hot sectors: after a crash any possible content, else the newest. Then that is what they hold. */
function verify(disk: OpenDisk, model: Model, crashed: boolean, where: string): void {
  for (const place of PLACES) {
    const sectors = Math.min(80, SECTORS - place);
    const bytes = new Uint8Array(sectors * SECTOR_BYTES);
    disk.chain.read(bytes, place * SECTOR_BYTES);
    const words = new Uint32Array(bytes.buffer);
    for (let at = 0; at < sectors; at++) {
      const sector = words.subarray(at * 128, at * 128 + 128);
      const value = sector[0] ?? 0;
      ok(sector.every((word) => word === value), `${where}: sector ${place + at} is torn`);
      const values = model.possible[place + at] ?? [];
      if (crashed) ok(values.includes(value), `${where}: sector ${place + at} holds ${value}, not one of ${values}`);
      else equal(value, values.at(-1), `${where}: sector ${place + at}`);
      model.possible[place + at] = [value];
    }
  }
}

class World {
  readonly files = new CrashFiles();
  readonly paths: ImagePaths;
  registry: ImageRegistry;
  disk: OpenDisk;
  top: { path: string; format: "raw" | "qcow2" };
  model = new Model();
  clones: { path: string; disk: OpenDisk; model: Model }[] = [];
  #serial = 1;
  #names = 0;

  constructor() {
    this.files.put("/images/base.raw", new Uint8Array(SECTORS * SECTOR_BYTES));
    this.paths = new ImagePaths(this.files, ["/images"]);
    this.registry = new ImageRegistry(this.paths);
    this.top = { path: "/images/base.raw", format: "raw" };
    this.disk = this.registry.open(this.top, { write: true });
  }

  write(disk: OpenDisk, model: Model, first: number, sectors: number): void {
    const count = Math.min(sectors, SECTORS - first);
    if (count <= 0) return;
    const words = new Uint32Array(count * 128);
    for (let at = 0; at < count; at++) {
      const value = this.#serial++;
      words.fill(value, at * 128, at * 128 + 128);
      model.set(first + at, value);
    }
    disk.chain.write(new Uint8Array(words.buffer), first * SECTOR_BYTES);
  }

  discard(first: number, sectors: number): void {
    const count = Math.min(sectors, SECTORS - first);
    if (count <= 0) return;
    const perBlock = BLOCK_BYTES / SECTOR_BYTES;
    for (let block = Math.ceil(first / perBlock); (block + 1) * perBlock <= first + count; block++) {
      for (let at = 0; at < perBlock; at++) this.model.set(block * perBlock + at, 0);
    }
    this.disk.chain.discard(first * SECTOR_BYTES, count * SECTOR_BYTES);
  }

  fork(clones: number): void {
    this.disk.chain.flush();
    this.model.settle();
    const name = () => `/images/${this.#names++}.qcow2`;
    const forked = this.disk.fork({ parent: name(), clones: Array.from({ length: clones }, name) });
    this.top = { path: forked.parent, format: "qcow2" };
    for (const path of forked.clones) {
      const disk = this.registry.open({ path, format: "qcow2" }, { write: true });
      this.clones.push({ path, disk, model: new Model(this.model) });
    }
  }

  crash(seed: number, fuse: number | undefined): void {
    if (fuse !== undefined) {
      // The cut comes in the midst of a write or a flush.
      this.files.fuse = fuse;
      try {
        this.write(this.disk, this.model, PLACES[1] ?? 0, 24);
        this.disk.chain.flush();
        this.model.settle();
      } catch (error) {
        if (!(error instanceof PowerCut)) throw error;
      }
    }
    this.files.crash(seededRandom(seed));
    for (const { path } of this.clones) if (this.files.paths().includes(path)) this.files.remove(path);
    this.clones = [];
    this.open();
    verify(this.disk, this.model, true, `after the power cut ${seed}`);
    for (const path of this.disk.layerPaths.slice(1)) this.checkSound(path);
  }

  open(): void {
    this.registry = new ImageRegistry(this.paths);
    this.disk = this.registry.open(this.top, { write: true });
  }

  reopen(): void {
    this.disk.chain.flush();
    this.model.settle();
    for (const { disk, model } of this.clones) verify(disk, model, false, "a clone before reopening");
    this.disk[Symbol.dispose]();
    for (const { disk } of this.clones) disk[Symbol.dispose]();
    for (const path of this.files.paths()) this.checkSound(path, true);
    this.open();
    for (const clone of this.clones) {
      clone.disk = this.registry.open({ path: clone.path, format: "qcow2" }, { write: true });
    }
  }

  checkSound(path: string, counted = false): void {
    if (!path.endsWith(".qcow2")) return;
    const { corruptions, undercounted, leaks, problems, dirty } = checkImage(this.paths, path);
    deepEqual({ corruptions, undercounted, problems }, { corruptions: 0, undercounted: 0, problems: [] }, path);
    if (counted && !dirty) equal(leaks, 0, path);
  }
}

Deno.test("a chain of overlays holds what was flushed, through forks and power cuts", () => {
  fc.assert(
    fc.property(fc.boolean(), commands, (forked, list) => {
      const world = new World();
      if (forked) world.fork(1);
      for (const command of list) {
        switch (command.kind) {
          case "write":
            world.write(world.disk, world.model, command.place + command.skip, command.sectors);
            for (const { disk, model } of world.clones) world.write(disk, model, command.place, command.skip + 1);
            break;
          case "discard":
            world.discard(command.place + command.skip, command.sectors);
            break;
          case "flush":
            world.disk.chain.flush();
            world.model.settle();
            break;
          case "reopen":
            world.reopen();
            break;
          case "fork":
            if (world.disk.layerPaths.length < 20) world.fork(command.clones);
            break;
          case "crash":
            world.crash(command.seed, command.fuse);
            break;
        }
      }
      verify(world.disk, world.model, false, "at the end");
      for (const { disk, model } of world.clones) verify(disk, model, false, "a clone at the end");
      world.reopen();
      verify(world.disk, world.model, false, "after closing");
    }),
    { numRuns: 300 },
  );
});
