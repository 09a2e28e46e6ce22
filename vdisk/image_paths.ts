/** Which files may be images, and what their headers say. Names come from headers, which are not trusted. */
import { DiskError } from "./errors.ts";
import type { FileStore } from "./ports.ts";
import { type BackingFormat, CLUSTER_BYTES, type Header, parseHeader } from "./qcow2/header.ts";
import { remoteChainId } from "./remote_layer.ts";

/** Files of one directory that are looked at when searching for images that stand on another. */
const MAX_FILES = 10_000;

export interface ImageName {
  readonly path: string;
  /** Told, never guessed: a guest with a raw disk could write a qcow2 header into it. */
  readonly format: BackingFormat;
}

export class ImagePaths {
  readonly files: FileStore;
  readonly #allowed: readonly string[];

  /** `allowed` are directories, with all below them, or single files (block devices). */
  constructor(files: FileStore, allowed: readonly string[]) {
    this.files = files;
    this.#allowed = allowed.map((path) => files.realPath(path));
  }

  /** The file's real path. Throws NOT_ALLOWED for one outside the allowed places, wherever its links lead. */
  resolve(path: string): string {
    const real = this.files.realPath(path);
    this.#check(real, path);
    return real;
  }

  /** The real path of a file that is to be made. */
  resolveNew(path: string): string {
    const { directory, name } = split(path);
    if (name === "" || name === "." || name === "..") {
      throw new DiskError(`create ${path}`, "INVALID", "it names no file");
    }
    const real = join(this.files.realPath(directory), name);
    this.#check(real, path);
    return real;
  }

  /** The name of a backing file, in the image at `imagePath`. */
  resolveBacking(imagePath: string, name: string): string {
    return this.resolve(name.startsWith("/") ? name : join(split(imagePath).directory, name));
  }

  readHeader(realPath: string): Header {
    using file = this.files.open(realPath, "peek");
    const bytes = new Uint8Array(CLUSTER_BYTES);
    return parseHeader(bytes.subarray(0, file.read(bytes, 0)), file.size(), realPath);
  }

  /** Real paths of the images in the allowed directories whose backing file is `realPath`. */
  standingOn(realPath: string): string[] {
    const found: string[] = [];
    for (const directory of this.#allowed) {
      const names = this.files.list(directory);
      if (names === undefined) continue;
      if (names.length > MAX_FILES) throw new DiskError(`search ${directory}`, "TOO_LONG", `over ${MAX_FILES} files`);
      for (const name of names) {
        const path = join(directory, name);
        if (path !== realPath && this.#backingOf(path) === realPath) found.push(path);
      }
    }
    return found;
  }

  /** Undefined for a file of another kind: it stands on nothing. */
  #backingOf(path: string): string | undefined {
    try {
      const { backing } = this.readHeader(path);
      if (backing === undefined || remoteChainId(backing.name) !== undefined) return undefined;
      return this.resolveBacking(path, backing.name);
    } catch (error) {
      if (error instanceof DiskError) return undefined;
      throw error;
    }
  }

  #check(real: string, path: string): void {
    if (!this.#allowed.some((allowed) => real === allowed || real.startsWith(allowed === "/" ? "/" : `${allowed}/`))) {
      throw new DiskError(`use ${path}`, "NOT_ALLOWED", `${real} is outside the image directories`);
    }
  }
}

/** What `make` makes of the file, which is closed if that fails. */
export function opened<F extends Disposable, T>(file: F, make: (file: F) => T): T {
  try {
    return make(file);
  } catch (error) {
    file[Symbol.dispose]();
    throw error;
  }
}

function split(path: string): { directory: string; name: string } {
  const slash = path.lastIndexOf("/");
  if (slash < 0) return { directory: ".", name: path };
  return { directory: slash === 0 ? "/" : path.slice(0, slash), name: path.slice(slash + 1) };
}

function join(directory: string, name: string): string {
  return directory === "/" ? `/${name}` : `${directory}/${name}`;
}
