import { deepEqual, equal, ok, throws } from "node:assert/strict";
import { NativeFiles } from "./native_file.ts";

async function inDirectory(body: (directory: string, files: NativeFiles) => void): Promise<void> {
  const directory = await Deno.realPath(await Deno.makeTempDir());
  try {
    body(directory, new NativeFiles());
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
}

Deno.test("bytes go where they are put, beyond 4 GiB too, and holes read as zeros", () =>
  inDirectory((directory, files) => {
    const path = `${directory}/f`;
    using file = files.create(path);
    const far = 5 * 2 ** 30 + 7;
    file.write(Uint8Array.of(1, 2, 3), far);
    file.write(new Uint8Array(8192).fill(9), 4096);
    file.sync();
    equal(file.size(), far + 3);
    const part = new Uint8Array(8);
    equal(file.read(part, far), 3);
    deepEqual([...part], [1, 2, 3, 0, 0, 0, 0, 0]);
    file.punchHole(4096, 4096);
    const pages = new Uint8Array(8192);
    equal(file.read(pages, 4096), 8192);
    ok(pages.subarray(0, 4096).every((byte) => byte === 0) && pages.subarray(4096).every((byte) => byte === 9));
    file.truncate(100);
    equal(file.size(), 100);
    equal(file.read(part, 200), 0);
    deepEqual(files.list(directory), ["f"]);
    equal(files.list(path), undefined);
  }));

Deno.test("one writer, or many readers", () =>
  inDirectory((directory, files) => {
    const path = `${directory}/f`;
    {
      using writer = files.create(path);
      throws(() => files.open(path, "read"), { code: "BUSY" });
      throws(() => files.open(path, "write"), { code: "BUSY" });
      files.open(path, "peek")[Symbol.dispose]();
      writer.share();
      files.open(path, "read")[Symbol.dispose]();
      throws(() => files.open(path, "write"), { code: "BUSY" });
    }
    using _reader = files.open(path, "read");
    using _other = files.open(path, "read");
    throws(() => files.open(path, "write"), { code: "BUSY" });
  }));

Deno.test("errors carry the errno", () =>
  inDirectory((directory, files) => {
    throws(() => files.open(`${directory}/none`, "read"), { code: "ENOENT" });
    throws(() => files.realPath(`${directory}/none`), { code: "ENOENT" });
    files.create(`${directory}/f`)[Symbol.dispose]();
    throws(() => files.create(`${directory}/f`), { code: "EEXIST" });
    using file = files.open(`${directory}/f`, "read");
    throws(() => file.write(new Uint8Array(1), 0), { code: "E9" });
    files.remove(`${directory}/f`);
    throws(() => files.remove(`${directory}/f`), { code: "ENOENT" });
  }));

Deno.test("staging memory is zeroed pages, gone after its disposal", () => {
  const files = new NativeFiles();
  const memory = files.allocate(5000);
  const { bytes } = memory;
  equal(bytes.byteLength, 8192);
  equal(memory.address % 4096n, 0n);
  ok(bytes.every((byte) => byte === 0));
  bytes.fill(1);
  memory[Symbol.dispose]();
  equal(bytes.byteLength, 0);
});
