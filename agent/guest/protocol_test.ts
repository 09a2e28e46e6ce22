import assert from "node:assert/strict";
import fc from "fast-check";
import type { CloneInfo } from "../api/engine.ts";
import { EngineError } from "../api/engine.ts";
import {
  answeredSeq,
  errorAnswer,
  joinAnswer,
  MAX_ANSWER_BYTES,
  MAX_REQUEST_BYTES,
  okAnswer,
  parseAnswer,
  parseRequest,
  printable,
  unprintable,
} from "./protocol.ts";

const bytes = (text: string) => new TextEncoder().encode(text);

Deno.test("requests are parsed", () => {
  const parse = (text: string) => parseRequest(bytes(text)).request;
  assert.deepEqual(parse("s request-ticket 4"), { verb: "request-ticket", clones: 4 });
  assert.deepEqual(parse("s clone t1"), { verb: "clone", ticket: "t1" });
  assert.deepEqual(parse("s join t1"), { verb: "join", ticket: "t1", from: 1 });
  assert.deepEqual(parse("s join t1 7"), { verb: "join", ticket: "t1", from: 7 });
  assert.deepEqual(parse("s exit"), { verb: "exit", status: 0, data: "" });
  assert.deepEqual(parse("s exit 3  two  blanks\nand a line "), {
    verb: "exit",
    status: 3,
    data: " two  blanks\nand a line ",
  });
  assert.deepEqual(parse("s checkpoint-parent"), { verb: "checkpoint-parent" });
});

Deno.test("bad requests are refused, with the number of the request where it can be read", () => {
  const refuse = (text: string) => {
    const { seq, error } = parseRequest(bytes(text));
    return [seq, error?.code];
  };
  for (const count of ["0", "-1", "1001", "99999999999", "four", "1e3", "0x10", "", "4 4", "+4"]) {
    assert.deepEqual(refuse(`s request-ticket ${count}`), ["s", "bad-count"], count);
  }
  for (const rest of ["clone", "clone a b", "clone ../x", "exit 256", "exit -1", "exit x", "fly", "", "join t -1"]) {
    assert.deepEqual(refuse(`s ${rest}`), ["s", "bad-request"], rest);
  }
  assert.deepEqual(refuse("s"), ["s", "bad-request"]);
  assert.deepEqual(refuse("\x00\x01 clone t"), ["-", "bad-request"]);
  assert.deepEqual(refuse(`s exit 0 ${"x".repeat(2049)}`), ["s", "bad-request"]);
  assert.deepEqual(refuse(`s exit 0 ${"\x01".repeat(2048)}`), ["s", "bad-request"]);
  assert.deepEqual(refuse(`s ${"x".repeat(65_536)}`), ["s", "bad-request"]);
  assert.deepEqual(refuse("x".repeat(65_536)), ["-", "bad-request"]);
  assert.equal(parseRequest(Uint8Array.of(0x73, 0x20, 0xff)).error?.code, "bad-request");
});

Deno.test("any bytes give a request or an error", () => {
  fc.assert(fc.property(fc.uint8Array({ maxLength: MAX_REQUEST_BYTES + 10 }), (value) => {
    const parsed = parseRequest(value);
    assert.match(parsed.seq, /^[A-Za-z0-9-]{1,64}$/);
    assert.equal(parsed.request === undefined, parsed.error !== undefined);
  }));
});

Deno.test("answers are one line, whatever the message", () => {
  assert.equal(okAnswer("s"), "s ok\n");
  assert.equal(okAnswer("s", "3"), "s ok 3\n");
  const answer = errorAnswer("s", new EngineError("busy", `a\nb ${"x".repeat(9000)}`));
  assert.match(answer, /^s error busy a%0ab x+\n$/);
  assert.ok(answer.length < 600);
  const error = parseAnswer("s", answer);
  assert.ok(error instanceof EngineError);
  assert.equal(error.code, "busy");
  assert.equal(parseAnswer("other", answer), undefined);
  assert.deepEqual(parseAnswer("s", "s ok lines 1 0\n1 0 x\n"), { ok: "lines 1 0", lines: ["1 0 x"] });
  assert.equal(answeredSeq(bytes(answer)), "s");
  assert.equal(answeredSeq(bytes("rubbish")), undefined);
});

function ended(id: number, data: string): CloneInfo {
  return { ticket: "t", id, name: `c${id}`, uuid: "u", host: "h", state: "exited", status: id % 256, data, times: {} };
}

Deno.test("join's lines come whole and in order, in pages that fit one message", () => {
  fc.assert(
    fc.property(fc.array(fc.string({ maxLength: 400, unit: "binary" }), { minLength: 1, maxLength: 20 }), (datas) => {
      const clones = datas.map((data, index) => ended(index + 1, data));
      const lines: string[] = [];
      let from = 1;
      for (let pages = 0; from !== 0; pages++) {
        assert.ok(pages <= clones.length);
        const answer = joinAnswer("s", clones, from);
        assert.ok(bytes(answer).length <= MAX_ANSWER_BYTES);
        const parsed = parseAnswer("s", answer);
        assert.ok(parsed !== undefined && !(parsed instanceof EngineError));
        const [word, count, next] = parsed.ok.split(" ");
        assert.equal(word, "lines");
        assert.equal(Number(count), parsed.lines.length);
        lines.push(...parsed.lines);
        from = Number(next);
      }
      assert.deepEqual(
        lines.map((line) => {
          const [, id, status, data] = /^(\d+) (\d+)(?: (.*))?$/s.exec(line) ?? [];
          return { id: Number(id), status: Number(status), data: unprintable(data ?? "") };
        }),
        clones.map(({ id, status, data }) => ({ id, status, data })),
      );
    }),
    { numRuns: 25 },
  );
});

Deno.test("a full two kilobytes of data go through", () => {
  const answer = joinAnswer("s", [ended(1, "ü".repeat(1024)), ended(2, "x".repeat(2048))], 1);
  assert.match(answer, /^s ok lines 1 2\n1 1 ü{1024}\n$/);
});

Deno.test("clones that did not exit are told with their reason", () => {
  const lost: CloneInfo = {
    ticket: "t",
    id: 1,
    name: "c",
    uuid: "u",
    host: "h",
    state: "lost",
    reason: "it crashed",
    times: {},
  };
  assert.equal(joinAnswer("s", [lost], 1), "s ok lines 1 0\n1 lost it crashed\n");
});

Deno.test("escapes can be undone", () => {
  assert.equal(printable("50% of\n\x00\x7f"), "50%25 of%0a%00%7f");
  fc.assert(fc.property(fc.string({ unit: "binary" }), (text) => unprintable(printable(text)) === text));
});
