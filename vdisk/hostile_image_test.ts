import { deepEqual, equal, ok, throws } from "node:assert/strict";
import { DiskError } from "./errors.ts";
import { checkImage, commitImage, createImage, imageInfo, removeImage } from "./image_commands.ts";
import { ImagePaths } from "./image_paths.ts";
import { ImageRegistry, MAX_LAYERS } from "./image_registry.ts";
import { encodeHeader, parseHeader, planHeader } from "./qcow2/header.ts";
import { CrashFiles, seededRandom } from "./testing/crash_files.ts";
import { DenoFiles } from "./testing/deno_files.ts";

function world() {
  const files = new CrashFiles();
  files.put("/images/base.raw", new Uint8Array(4 * 1024 * 1024));
  const paths = new ImagePaths(files, ["/images"]);
  return { files, paths, registry: new ImageRegistry(paths) };
}

/** An image with a chosen backing name, not checked by anyone. */
function forge(files: CrashFiles, path: string, backing: string, format: "raw" | "qcow2"): void {
  const header = planHeader(1024 * 1024, { name: backing, format });
  const bytes = new Uint8Array(8 * 4096);
  bytes.set(encodeHeader(header));
  files.put(path, bytes);
}

Deno.test("a header says what it was made of", () => {
  const header = { ...planHeader(10 * 2 ** 30, { name: "/images/below", format: "qcow2" }), dirty: true, frozen: true };
  deepEqual(parseHeader(encodeHeader(header), 2 ** 20, "x"), header);
  throws(() => planHeader(513, undefined), { code: "INVALID" });
  throws(() => planHeader(2 ** 43, undefined), { code: "INVALID" });
  throws(() => encodeHeader(planHeader(512, { name: "n".repeat(1024), format: "raw" })), { code: "INVALID" });
});

Deno.test("headers of other kinds are refused by what they ask for", () => {
  const refused = (change: (view: DataView) => void, code: string, fileBytes = 2 ** 20) => {
    const bytes = encodeHeader(planHeader(2 ** 30, { name: "b", format: "raw" }));
    change(new DataView(bytes.buffer));
    throws(() => parseHeader(bytes, fileBytes, "x"), { code });
  };
  refused((view) => view.setUint32(0, 0), "CORRUPT");
  refused((view) => view.setUint32(4, 2), "UNSUPPORTED");
  refused((view) => view.setUint32(20, 16), "UNSUPPORTED");
  refused((view) => view.setUint32(20, 63), "UNSUPPORTED");
  refused((view) => view.setBigUint64(24, 2n ** 63n), "UNSUPPORTED");
  refused((view) => view.setUint32(32, 1), "UNSUPPORTED");
  refused((view) => view.setUint32(36, 0xffff_ffff), "CORRUPT");
  refused((view) => view.setUint32(36, 1), "CORRUPT");
  refused((view) => view.setBigUint64(40, 2n ** 62n), "CORRUPT");
  refused((view) => view.setBigUint64(40, 4097n), "CORRUPT");
  refused((view) => view.setBigUint64(48, 0n), "CORRUPT");
  refused((view) => view.setUint32(56, 0xffff_ffff), "CORRUPT");
  refused((view) => view.setUint32(60, 1), "UNSUPPORTED");
  refused((view) => view.setBigUint64(72, 2n), "CORRUPT");
  refused((view) => view.setBigUint64(72, 16n), "UNSUPPORTED");
  refused((view) => view.setUint32(100, 0xffff_fff8), "CORRUPT");
  refused((view) => view.setBigUint64(8, 2n ** 40n), "CORRUPT");
  refused((view) => view.setUint32(16, 5000), "CORRUPT");
  refused((view) => view.setUint32(128, 0x1234), "UNSUPPORTED"); // the format's extension has another type: none is named
  refused(() => {}, "CORRUPT", 4096);
});

Deno.test("no change of bytes in an image makes more than a DiskError", () => {
  const { files, paths, registry } = world();
  createImage(paths, "/images/a", { backing: { path: "/images/base.raw", format: "raw" } });
  {
    using disk = registry.open({ path: "/images/a", format: "qcow2" }, { write: true });
    for (let block = 0; block < 900; block += 7) disk.chain.write(new Uint8Array(4096).fill(1), block * 4096);
  }
  const sound = files.get("/images/a");
  ok(sound);
  const random = seededRandom(42);
  let refused = 0;
  for (let round = 0; round < 3000; round++) {
    const bytes = sound.slice(0, random() < 0.1 ? Math.floor(random() * sound.byteLength) : undefined);
    for (let count = 1 + Math.floor(random() * 4); count > 0; count--) {
      // Mostly among the tables, whose entries are few.
      bytes[Math.floor(random() * (random() < 0.5 ? 200 : bytes.byteLength))] = Math.floor(random() * 256);
    }
    files.put("/images/b", bytes);
    try {
      using disk = registry.open({ path: "/images/b", format: "qcow2" }, { write: round % 2 === 0 });
      const part = new Uint8Array(64 * 4096);
      for (let at = 0; at + part.byteLength <= disk.chain.byteLength && at < 4 * 1024 * 1024; at += part.byteLength) {
        disk.chain.read(part, at);
      }
      if (disk.chain.writable) disk.chain.write(part.subarray(0, 4096), 0);
    } catch (error) {
      ok(error instanceof DiskError, String(error));
      refused++;
    }
    try {
      checkImage(paths, "/images/b", { repair: round % 3 === 0 });
    } catch (error) {
      ok(error instanceof DiskError, String(error));
    }
  }
  ok(refused > 300 && refused < 2900, `${refused} refused`);
});

Deno.test("an entry that lies is found, and dropped by repair with a word", () => {
  const { files, paths, registry } = world();
  createImage(paths, "/images/a", { byteLength: 1024 * 1024 });
  {
    using disk = registry.open({ path: "/images/a", format: "qcow2" }, { write: true });
    disk.chain.write(new Uint8Array(3 * 4096).fill(1), 0);
  }
  const bytes = files.get("/images/a");
  ok(bytes);
  const view = new DataView(bytes.buffer);
  const l1 = Number(view.getBigUint64(40));
  const l2 = Number(view.getBigUint64(l1) & 0xffff_ffff_ffffn);
  view.setBigUint64(l2 + 8, view.getBigUint64(l2)); // two blocks in one cluster
  files.put("/images/a", bytes);
  equal(checkImage(paths, "/images/a").corruptions, 1);
  throws(() => registry.open({ path: "/images/a", format: "qcow2" }, { write: true }), { code: "CORRUPT" });
  equal(checkImage(paths, "/images/a", { repair: true }).droppedEntries, 1);
  deepEqual(
    { ...checkImage(paths, "/images/a"), problems: [] },
    { corruptions: 0, undercounted: 0, leaks: 0, dirty: false, problems: [], droppedEntries: 0 },
  );
  using disk = registry.open({ path: "/images/a", format: "qcow2" }, { write: true });
  const part = new Uint8Array(3 * 4096);
  disk.chain.read(part, 0);
  deepEqual([part[0], part[4096], part[8192]], [1, 0, 1]);
});

Deno.test("chains that meet themselves, are too long, or lead out are refused", () => {
  const { files, paths, registry } = world();
  const refused = (path: string, code: string) => {
    throws(() => registry.open({ path, format: "qcow2" }, { write: false }), { code });
    throws(() => imageInfo(paths, { path, format: "qcow2" }), { code });
  };
  forge(files, "/images/self", "self", "qcow2");
  refused("/images/self", "CYCLE");
  forge(files, "/images/x", "/images/y", "qcow2");
  forge(files, "/images/y", "/images/x", "qcow2");
  refused("/images/x", "CYCLE");
  files.put("/etc/shadow", new Uint8Array(4096));
  forge(files, "/images/out", "/etc/shadow", "raw");
  refused("/images/out", "NOT_ALLOWED");
  forge(files, "/images/lost", "/images/nowhere", "raw");
  refused("/images/lost", "ENOENT");
  forge(files, "/images/0", "/images/base.raw", "raw");
  for (let layer = 1; layer <= MAX_LAYERS; layer++) forge(files, `/images/${layer}`, `/images/${layer - 1}`, "qcow2");
  refused(`/images/${MAX_LAYERS}`, "TOO_LONG");
  registry.open({ path: `/images/${MAX_LAYERS - 2}`, format: "qcow2" }, { write: false })[Symbol.dispose]();
});

Deno.test("a link out of the image directories leads nowhere", async () => {
  const directory = await Deno.realPath(await Deno.makeTempDir());
  try {
    await Deno.mkdir(`${directory}/images`);
    await Deno.writeFile(`${directory}/secret`, new Uint8Array(4096));
    await Deno.symlink(`${directory}/secret`, `${directory}/images/link`);
    await Deno.symlink(directory, `${directory}/images/up`);
    const paths = new ImagePaths(new DenoFiles(), [`${directory}/images`]);
    throws(() => paths.resolve(`${directory}/images/link`), { code: "NOT_ALLOWED" });
    throws(() => paths.resolve(`${directory}/images/up/secret`), { code: "NOT_ALLOWED" });
    throws(() => paths.resolve(`${directory}/images/../secret`), { code: "NOT_ALLOWED" });
    throws(() => paths.resolveNew(`${directory}/images/up/new`), { code: "NOT_ALLOWED" });
    throws(() => paths.resolveNew(`${directory}/images/..`), { code: "INVALID" });
    equal(paths.resolveNew(`${directory}/images/new`), `${directory}/images/new`);
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
});

Deno.test("commit and rm leave alone what others stand on or use", () => {
  const { files, paths, registry } = world();
  const base = { path: "/images/base.raw", format: "raw" } as const;
  createImage(paths, "/images/a", { backing: base });
  createImage(paths, "/images/b", { backing: base });
  throws(() => removeImage(paths, "/images/base.raw"), { code: "BUSY" });
  throws(() => commitImage(paths, "/images/a"), { code: "BUSY" });
  {
    using disk = registry.open({ path: "/images/b", format: "qcow2" }, { write: true });
    disk.chain.write(new Uint8Array(512).fill(5), 0);
    throws(() => removeImage(paths, "/images/b"), { code: "BUSY" });
    throws(() => checkImage(paths, "/images/b"), { code: "BUSY" });
  }
  removeImage(paths, "/images/a");
  deepEqual(commitImage(paths, "/images/b"), { backing: base, blocks: 1 });
  equal(files.get("/images/base.raw")?.[511], 5);
  deepEqual(files.paths(), ["/images/base.raw"]);
  throws(() => createImage(paths, "/images/c", {}), { code: "INVALID" });
});

Deno.test("a frozen image is written to by nobody but commit, which thaws it", () => {
  const { paths, registry } = world();
  createImage(paths, "/images/a", { byteLength: 1024 * 1024 });
  {
    using disk = registry.open({ path: "/images/a", format: "qcow2" }, { write: true });
    disk.chain.write(new Uint8Array(4096).fill(1), 0);
    disk.fork({ parent: "/images/p", clones: [] });
    disk.chain.write(new Uint8Array(4096).fill(2), 4096);
  }
  throws(() => registry.open({ path: "/images/a", format: "qcow2" }, { write: true }), { code: "FROZEN" });
  equal(imageInfo(paths, { path: "/images/a", format: "qcow2" }).frozen, true);
  commitImage(paths, "/images/p");
  using disk = registry.open({ path: "/images/a", format: "qcow2" }, { write: true });
  const part = new Uint8Array(8192);
  disk.chain.read(part, 0);
  deepEqual([part[0], part[4096]], [1, 2]);
});
