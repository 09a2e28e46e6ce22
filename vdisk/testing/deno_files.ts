/** Real files without FFI, for tests that compare with QEMU's tools. Locks hold within the object only. */
import { DiskError } from "../errors.ts";
import type { FilePort, FileStore } from "../ports.ts";

export class DenoFiles implements FileStore {
  /** -1 exclusive, else how many share. */
  readonly #locks = new Map<string, number>();

  open(path: string, mode: "peek" | "read" | "write"): FilePort {
    const held = this.#locks.get(path) ?? 0;
    if (mode === "write" ? held !== 0 : mode === "read" && held < 0) {
      throw new DiskError(`open ${path}`, "BUSY", "locked");
    }
    const file = Deno.openSync(path, { read: true, write: mode === "write" });
    if (mode !== "peek") this.#locks.set(path, mode === "write" ? -1 : held + 1);
    return this.#port(path, file, mode);
  }

  create(path: string): FilePort {
    const file = Deno.openSync(path, { read: true, write: true, createNew: true });
    this.#locks.set(path, -1);
    return this.#port(path, file, "write");
  }

  realPath(path: string): string {
    try {
      return Deno.realPathSync(path);
    } catch (cause) {
      throw new DiskError(`find ${path}`, "ENOENT", String(cause), { cause });
    }
  }

  remove(path: string): void {
    Deno.removeSync(path);
  }

  list(directory: string): string[] | undefined {
    if (!Deno.statSync(directory).isDirectory) return undefined;
    return [...Deno.readDirSync(directory)].filter((entry) => entry.isFile).map((entry) => entry.name);
  }

  #port(path: string, file: Deno.FsFile, mode: "peek" | "read" | "write"): FilePort {
    let lock = mode;
    const seek = (offset: number) => file.seekSync(offset, Deno.SeekMode.Start);
    return {
      path,
      size: () => file.statSync().size,
      read(into, offset) {
        seek(offset);
        let done = 0;
        while (done < into.byteLength) {
          const got = file.readSync(into.subarray(done));
          if (got === null) break;
          done += got;
        }
        return done;
      },
      write(bytes, offset) {
        seek(offset);
        for (let done = 0; done < bytes.byteLength;) done += file.writeSync(bytes.subarray(done));
      },
      sync: () => file.syncDataSync(),
      truncate: (byteLength) => file.truncateSync(byteLength),
      punchHole(offset, byteLength) {
        seek(offset);
        file.writeSync(new Uint8Array(byteLength));
      },
      share: () => {
        lock = "read";
        this.#locks.set(path, 1);
      },
      [Symbol.dispose]: () => {
        file.close();
        const held = this.#locks.get(path) ?? 0;
        if (lock === "write") this.#locks.set(path, 0);
        if (lock === "read") this.#locks.set(path, held - 1);
      },
    };
  }
}
