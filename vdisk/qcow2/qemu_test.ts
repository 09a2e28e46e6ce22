/** Our images and QEMU's tools, each reading what the other wrote. Needs qemu-utils. */
import { deepEqual, equal, ok } from "node:assert/strict";
import { checkImage, commitImage, createImage, imageInfo, removeImage } from "../image_commands.ts";
import { ImagePaths } from "../image_paths.ts";
import { ImageRegistry } from "../image_registry.ts";
import { seededRandom } from "../testing/crash_files.ts";
import { DenoFiles } from "../testing/deno_files.ts";

const MIB = 1024 * 1024;

async function run(command: string, ...args: string[]): Promise<string> {
  const { code, stdout, stderr } = await new Deno.Command(command, { args, stdout: "piped", stderr: "piped" }).output();
  const text = new TextDecoder().decode(stdout);
  equal(code, 0, `${command} ${args.join(" ")}: ${text}${new TextDecoder().decode(stderr)}`);
  return text;
}

async function inDirectory(body: (directory: string, paths: ImagePaths) => Promise<void>): Promise<void> {
  const directory = await Deno.makeTempDir();
  try {
    await body(directory, new ImagePaths(new DenoFiles(), [directory]));
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
}

Deno.test("qemu-img finds our chains sound and reads the same bytes", () =>
  inDirectory(async (directory, paths) => {
    const random = seededRandom(1);
    const content = new Uint8Array(24 * MIB + 512 * 3);
    const scribble = (bytes: number) => {
      const part = new Uint8Array(bytes);
      for (let at = 0; at < bytes; at += 16) part[at] = Math.floor(random() * 256);
      return part;
    };
    content.set(scribble(3 * MIB), MIB);
    await Deno.writeFile(`${directory}/base.raw`, content);
    let top: { path: string; format: "raw" | "qcow2" } = { path: `${directory}/base.raw`, format: "raw" };
    const registry = new ImageRegistry(paths);
    const overlays: string[] = [];
    for (let layer = 0; layer < 4; layer++) {
      const path = `${directory}/${layer}.qcow2`;
      createImage(paths, path, { backing: top });
      top = { path, format: "qcow2" };
      overlays.push(path);
      using disk = registry.open(top, { write: true });
      for (let write = 0; write < 200; write++) {
        const sectors = 1 + Math.floor(random() * 70);
        const sector = Math.floor(random() * (content.byteLength / 512 - sectors));
        if (random() < 0.1) {
          disk.chain.discard(sector * 512, sectors * 512);
          content.fill(
            0,
            Math.ceil(sector / 8) * 4096,
            Math.max(Math.ceil(sector / 8), Math.floor((sector + sectors) / 8)) * 4096,
          );
          continue;
        }
        const part = scribble(sectors * 512);
        content.set(part, sector * 512);
        disk.chain.write(part, sector * 512);
      }
    }
    for (const path of overlays) {
      const report = JSON.parse(await run("qemu-img", "check", "--output=json", path));
      deepEqual([report["check-errors"], report.corruptions ?? 0, report.leaks ?? 0], [0, 0, 0], path);
      const own = checkImage(paths, path);
      deepEqual([own.corruptions, own.undercounted, own.leaks, own.dirty], [0, 0, 0, false]);
    }
    const info = JSON.parse(await run("qemu-img", "info", "--output=json", top.path));
    deepEqual([info["virtual-size"], info["cluster-size"], info["backing-filename-format"], info["dirty-flag"]], [
      content.byteLength,
      4096,
      "qcow2",
      false,
    ]);
    equal(imageInfo(paths, top).chain.length, 4);
    await run("qemu-img", "convert", "-O", "raw", top.path, `${directory}/flat.raw`);
    const flat = await Deno.readFile(`${directory}/flat.raw`);
    equal(flat.byteLength, content.byteLength);
    ok(flat.every((byte, at) => byte === content[at]), "qemu-img reads other bytes");

    // Committed one by one into the layer below, down to the base, the content stays.
    for (const path of overlays.toReversed()) {
      removeIfMissing(paths, path);
      ok(commitImage(paths, path).blocks > 0);
    }
    const merged = await Deno.readFile(`${directory}/base.raw`);
    ok(merged.every((byte, at) => byte === content[at]), "commit changed the content");
    deepEqual([...Deno.readDirSync(directory)].map(({ name }) => name).sort(), ["base.raw", "flat.raw"]);
  }));

/** What stands below others cannot be removed. */
function removeIfMissing(paths: ImagePaths, path: string): void {
  const base = imageInfo(paths, { path, format: "qcow2" }).chain[0];
  ok(base !== undefined && "path" in base);
  try {
    removeImage(paths, base.path);
  } catch (error) {
    ok(error instanceof Error && "code" in error);
    equal(error.code, "BUSY");
    return;
  }
  throw new Error(`${base.path} was removed`);
}

Deno.test("we read and go on with what qemu-io wrote", () =>
  inDirectory(async (directory, paths) => {
    const path = `${directory}/q.qcow2`;
    await run("qemu-img", "create", "-q", "-f", "raw", `${directory}/base.raw`, "16M");
    await run(
      "qemu-img",
      "create",
      "-q",
      "-f",
      "qcow2",
      "-o",
      "cluster_size=4096",
      "-b",
      "base.raw",
      "-F",
      "raw",
      path,
    );
    await run("qemu-io", "-c", "write -P 7 5M 1M", "-c", "write -P 8 100k 3k", "-c", "write -z 6M 64k", path);
    {
      using disk = new ImageRegistry(paths).open({ path, format: "qcow2" }, { write: true });
      const bytes = new Uint8Array(4096);
      disk.chain.read(bytes, 5 * MIB);
      ok(bytes.every((byte) => byte === 7));
      disk.chain.read(bytes, 100 * 1024);
      deepEqual([bytes[0], bytes[3 * 1024]], [8, 0]);
      disk.chain.write(new Uint8Array(64 * 1024).fill(9), 5 * MIB + 4096);
      disk.chain.write(new Uint8Array(64 * 1024).fill(10), 12 * MIB);
    }
    const out = await run(
      "qemu-io",
      "-c",
      "read -P 7 5M 4k",
      "-c",
      "read -P 9 5246976 64k",
      "-c",
      "read -P 10 12M 64k",
      "-c",
      "read -P 0 6M 64k",
      path,
    );
    ok(!out.includes("Pattern verification failed"), out);
    const report = JSON.parse(await run("qemu-img", "check", "--output=json", path));
    deepEqual([report["check-errors"], report.corruptions ?? 0], [0, 0]);
  }));

Deno.test("a dirty image is read by QEMU as it is, and its repair agrees with ours", () =>
  inDirectory(async (directory, paths) => {
    const path = `${directory}/dirty.qcow2`;
    createImage(paths, path, { byteLength: 8 * MIB });
    const disk = new ImageRegistry(paths).open({ path, format: "qcow2" }, { write: true });
    disk.chain.write(new Uint8Array(MIB).fill(3), 2 * MIB);
    disk.chain.flush();
    disk.chain.write(new Uint8Array(MIB).fill(4), 4 * MIB);
    // The process dies here: the second mebibyte was never flushed.
    const copy = `${directory}/copy.qcow2`;
    await Deno.copyFile(path, copy);
    ok(!(await run("qemu-io", "-r", "-c", "read -P 3 2M 1M", copy)).includes("failed"));
    await run("qemu-img", "check", "-q", "-r", "all", copy);
    const ours = `${directory}/ours.qcow2`;
    await Deno.copyFile(path, ours);
    const { dirty, corruptions } = checkImage(paths, ours, { repair: true });
    deepEqual([dirty, corruptions], [true, 0]);
    await run("qemu-img", "check", "-q", ours);
    await run("qemu-img", "compare", copy, ours);
    ok(Deno.statSync(ours).size < 2 * MIB, "what no flush reached is given back");
    disk[Symbol.dispose]();
    await run("qemu-img", "check", "-q", path);
  }));
