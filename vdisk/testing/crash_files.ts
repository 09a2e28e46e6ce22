/**
 * Files in memory whose power can be cut: of what was written since the last sync, any part may have reached the disk, each
 * 512-byte sector by itself, in any order. For tests.
 */
import { DiskError } from "../errors.ts";
import { type FilePort, type FileStore, SECTOR_BYTES } from "../ports.ts";

/** A number in [0, 1). */
export type Random = () => number;

/** Mulberry32: enough for tests, and the same everywhere. */
export function seededRandom(seed: number): Random {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

export class PowerCut extends Error {}

type Change = { readonly offset: number; readonly bytes: Uint8Array } | { readonly size: number };

class Content {
  bytes = new Uint8Array(4096);
  size = 0;
  durable: Uint8Array = new Uint8Array();
  changes: Change[] = [];
  nameDurable = false;
  locks = 0; // -1 exclusive, else the shared ones

  view(): Uint8Array {
    return this.bytes.subarray(0, this.size);
  }

  resize(size: number): void {
    if (size > this.bytes.byteLength) {
      const grown = new Uint8Array(Math.max(size, this.bytes.byteLength * 2));
      grown.set(this.view());
      this.bytes = grown;
    }
    if (size < this.size) this.bytes.fill(0, size, this.size);
    this.size = size;
  }

  put(offset: number, bytes: Uint8Array): void {
    if (offset + bytes.byteLength > this.size) this.resize(offset + bytes.byteLength);
    this.bytes.set(bytes, offset);
  }
}

export class CrashFiles implements FileStore {
  readonly #contents = new Map<string, Content>();
  #epoch = 0;
  /** The power is cut after so many more changes or syncs; undefined: never. */
  fuse: number | undefined;
  syncs = 0;

  /** A durable file with this content. */
  put(path: string, bytes: Uint8Array): void {
    const content = new Content();
    content.put(0, bytes);
    content.durable = bytes.slice();
    content.nameDurable = true;
    this.#contents.set(path, content);
  }

  /** A copy of what programs see in the file. */
  get(path: string): Uint8Array | undefined {
    return this.#contents.get(path)?.view().slice();
  }

  paths(): string[] {
    return [...this.#contents.keys()];
  }

  /** Cuts the power: open files are lost, and each unsynced sector with them, or not. */
  crash(random: Random): void {
    this.#epoch++;
    this.fuse = undefined;
    for (const [path, content] of [...this.#contents]) {
      if (!content.nameDurable && random() < 0.5) {
        this.#contents.delete(path);
        continue;
      }
      const survivor = new Content();
      survivor.put(0, content.durable);
      // Now and then all or nothing arrives, and mostly a part.
      const share = [0, 1, random(), random()][Math.floor(random() * 4)] ?? 0;
      const order = random() < 0.5 ? content.changes : shuffled(content.changes, random);
      for (const change of order) {
        if ("size" in change) {
          if (random() < share) survivor.resize(change.size);
          continue;
        }
        let at = 0;
        while (at < change.bytes.byteLength) {
          const toBoundary = SECTOR_BYTES - (change.offset + at) % SECTOR_BYTES;
          const piece = change.bytes.subarray(at, at + toBoundary);
          if (random() < share) survivor.put(change.offset + at, piece);
          at += piece.byteLength;
        }
      }
      survivor.durable = survivor.view().slice();
      survivor.nameDurable = true;
      this.#contents.set(path, survivor);
    }
  }

  open(path: string, mode: "peek" | "read" | "write"): FilePort {
    const content = this.#contents.get(path);
    if (content === undefined) throw new DiskError(`open ${path}`, "ENOENT", "no such file");
    if (mode === "write" ? content.locks !== 0 : mode === "read" && content.locks < 0) {
      throw new DiskError(`open ${path}`, "BUSY", "locked");
    }
    if (mode === "write") content.locks = -1;
    if (mode === "read") content.locks++;
    return this.#file(path, content, mode);
  }

  create(path: string): FilePort {
    if (this.#contents.has(path)) throw new DiskError(`create ${path}`, "EEXIST", "it exists");
    const content = new Content();
    content.locks = -1;
    this.#contents.set(path, content);
    return this.#file(path, content, "write");
  }

  realPath(path: string): string {
    const isDirectory = [...this.#contents.keys()].some((name) => name.startsWith(`${path}/`)) || path === "/images";
    if (!this.#contents.has(path) && !isDirectory) throw new DiskError(`find ${path}`, "ENOENT", "no such file");
    return path;
  }

  remove(path: string): void {
    if (!this.#contents.delete(path)) throw new DiskError(`remove ${path}`, "ENOENT", "no such file");
  }

  list(directory: string): string[] | undefined {
    if (this.#contents.has(directory)) return undefined;
    return [...this.#contents.keys()]
      .filter((path) => path.startsWith(`${directory}/`))
      .map((path) => path.slice(directory.length + 1));
  }

  #file(path: string, content: Content, mode: "peek" | "read" | "write"): FilePort {
    const epoch = this.#epoch;
    let lock = mode;
    let open = true;
    const use = () => {
      if (epoch !== this.#epoch) throw new PowerCut("the power was cut");
      if (!open) throw new Error(`${path} is closed`);
    };
    const change = () => {
      use();
      if (mode !== "write") throw new DiskError(`write ${path}`, "EIO", "it is open for reading");
      if (this.fuse !== undefined && this.fuse-- <= 0) throw new PowerCut("the fuse");
    };
    return {
      path,
      size: () => content.size,
      read(into, offset) {
        use();
        const bytes = content.view().subarray(offset, offset + into.byteLength);
        into.set(bytes);
        return bytes.byteLength;
      },
      write(bytes, offset) {
        change();
        content.put(offset, bytes);
        content.changes.push({ offset, bytes: bytes.slice() });
      },
      sync: () => {
        change();
        this.syncs++;
        content.durable = content.view().slice();
        content.changes = [];
        content.nameDurable = true;
      },
      truncate(byteLength) {
        change();
        content.resize(byteLength);
        content.changes.push({ size: byteLength });
      },
      punchHole(offset, byteLength) {
        change();
        const bytes = new Uint8Array(Math.max(0, Math.min(byteLength, content.size - offset)));
        content.put(offset, bytes);
        content.changes.push({ offset, bytes });
      },
      share() {
        use();
        lock = "read";
        content.locks = 1;
      },
      [Symbol.dispose]: () => {
        if (!open || epoch !== this.#epoch) return;
        open = false;
        if (lock === "write") content.locks = 0;
        if (lock === "read") content.locks--;
      },
    };
  }
}

function shuffled<T>(items: readonly T[], random: Random): T[] {
  const result = [...items];
  for (let index = result.length - 1; index > 0; index--) {
    const other = Math.floor(random() * (index + 1));
    const a = result[index];
    const b = result[other];
    if (a !== undefined && b !== undefined) {
      result[index] = b;
      result[other] = a;
    }
  }
  return result;
}
