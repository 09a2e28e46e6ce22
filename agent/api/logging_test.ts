import assert from "node:assert/strict";
import { getLogger } from "@logtape/logtape";
import { LogBuffer } from "./log_buffer.ts";
import { startLogging } from "./logging.ts";

Deno.test("a record is one line of JSON, without secrets, bounded", async () => {
  const lines: string[] = [];
  const buffer = new LogBuffer();
  {
    await using _logging = await startLogging({ level: "info", write: (line) => void lines.push(line), buffer });
    const logger = getLogger(["snowflock", "test"]);
    logger.debug("not this");
    logger.info("domain {domid} said\n{text}", { domid: 7, text: "x".repeat(10_000), big: 5n });
    logger.error("it failed: {error}", {
      error: Object.assign(new TypeError("outer", { cause: new Error("inner") }), { code: "EIO" }),
      authKey: "k1",
      key: "k2",
      nested: { password: "k3", list: [{ token: "k4" }], seed: "k5" },
      page: new Uint8Array([0x6b, 0x36]),
      keys: 3,
    });
  }
  getLogger(["snowflock", "test"]).info("after the end");
  assert.equal(lines.length, 2);
  assert.deepEqual(buffer.tail(10), lines.map((line) => line.trimEnd()));
  const [info, error] = lines.map((line) => JSON.parse(line));
  assert.ok(lines.every((line) => line.endsWith("\n") && line.indexOf("\n") === line.length - 1));
  assert.equal(info.level, "info");
  assert.equal(info.logger, "snowflock.test");
  assert.equal(info.big, "5");
  assert.match(info.message, /^domain 7 said\nx+\.\.\.$/);
  assert.ok(info.message.length < 5000);
  assert.match(info.time, /^\d{4}-\d\d-\d\dT.*Z$/);
  assert.equal(error.message, "it failed: outer");
  assert.equal(error.error.code, "EIO");
  assert.equal(error.error.cause.message, "inner");
  assert.equal(error.page, "[2 bytes]");
  assert.equal(error.keys, 3);
  assert.doesNotMatch(lines[1] ?? "", /k[1-6]"/);
});

Deno.test("the buffer keeps the last lines, and tells a slow reader what it lost", async () => {
  const buffer = new LogBuffer();
  for (let n = 0; n < 2500; n++) buffer.push(String(n));
  assert.equal(buffer.tail(5000).length, 2000);
  assert.deepEqual(buffer.tail(2), ["2498", "2499"]);
  assert.deepEqual(buffer.tail(0), []);
  const reader = buffer.stream(0, true).getReader();
  for (let n = 0; n < 4000; n++) buffer.push(`line ${n}`);
  const read = async () => new TextDecoder().decode((await reader.read()).value);
  let last = "";
  for (let n = 0; n < 3001; n++) last = await read();
  assert.equal(last, "line 3000\n");
  buffer.push("next");
  assert.equal(await read(), '{"level":"warning","message":"lines were lost","dropped":999}\n');
  assert.equal(await read(), "next\n");
  await reader.cancel();
  assert.equal(buffer.followers, 0);
});
