/**
 * The text that guests and the agent exchange in xenstore. README.md has the table of requests.
 *
 * A request is `SEQ VERB [ARGUMENTS]`, an answer `SEQ ok [TEXT]` or `SEQ error CODE MESSAGE`, closed by a newline; an answer
 * `SEQ ok lines N NEXT` has N more lines. SEQ is the client's, never used twice. What a guest wrote is hostile until parsed here.
 */
import { type CloneInfo, EngineError, MAX_CLONES, MAX_EXIT_DATA_BYTES } from "../api/engine.ts";

/** xenstored's own limit of a payload: path, NUL and value. */
export const MAX_PAYLOAD_BYTES = 4096;
/** Most bytes of a request: the largest is an `exit` with its data, or a garbled one. */
export const MAX_REQUEST_BYTES = MAX_EXIT_DATA_BYTES + 256;
/** Answers stay below what one message through the kernel's device can carry: 4096 with header. */
export const MAX_ANSWER_BYTES = 3584;
/** Most bytes of what a clone handed over, escaped. */
const MAX_LINE_BYTES = MAX_ANSWER_BYTES - 256;

export type GuestRequest =
  | { readonly verb: "request-ticket"; readonly clones: number }
  | { readonly verb: "clone" | "kill"; readonly ticket: string }
  | { readonly verb: "join"; readonly ticket: string; readonly from: number }
  | { readonly verb: "exit"; readonly status: number; readonly data: string }
  | { readonly verb: "checkpoint-parent" };

/** A request with its number, or why there is none. `seq` is `-` where not even that could be read. */
export type ParsedRequest =
  | { readonly seq: string; readonly request: GuestRequest; readonly error?: undefined }
  | { readonly seq: string; readonly request?: undefined; readonly error: EngineError };

const SEQ = /^[A-Za-z0-9-]{1,64}$/;
const TICKET = /^[A-Za-z0-9._-]{1,64}$/;

/** Whether `text` can be a ticket's name. Engines must not make others. */
export function isTicketName(text: string): boolean {
  return TICKET.test(text);
}

/** Never throws. `value` is as read from xenstore. */
export function parseRequest(value: Uint8Array): ParsedRequest {
  // The head first: even an oversized request tells whom to answer.
  const head = new TextDecoder().decode(value.subarray(0, 80));
  const first = /^\S*/.exec(head)?.[0] ?? "";
  const seq = SEQ.test(first) ? first : "-";
  const refuse = (code: "bad-request" | "bad-count", message: string): ParsedRequest => ({
    seq,
    error: new EngineError(code, message),
  });
  if (value.length > MAX_REQUEST_BYTES) {
    return refuse("bad-request", `The request has ${value.length} bytes; ${MAX_REQUEST_BYTES} are allowed`);
  }
  if (seq === "-") return refuse("bad-request", "The request does not begin with a sequence number");
  let text: string;
  try {
    text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(value);
  } catch {
    return refuse("bad-request", "The request is not UTF-8");
  }
  const [, verb = "", rest = ""] = /^\S+ +(\S+)(?: ([^]*))?$/.exec(text) ?? [];
  const words = rest.trim() === "" ? [] : rest.trim().split(/ +/);
  const [word = ""] = words;
  switch (verb) {
    case "request-ticket": {
      const clones = integer(word, MAX_CLONES);
      return words.length === 1 && clones !== undefined && clones >= 1
        ? { seq, request: { verb, clones } }
        : refuse("bad-count", `The number of clones must be 1..${MAX_CLONES}`);
    }
    case "clone":
    case "kill":
      return words.length === 1 && isTicketName(word)
        ? { seq, request: { verb, ticket: word } }
        : refuse("bad-request", `${verb} needs a ticket`);
    case "join": {
      const from = integer(words[1] ?? "1", MAX_CLONES);
      return words.length <= 2 && isTicketName(word) && from !== undefined
        ? { seq, request: { verb, ticket: word, from } }
        : refuse("bad-request", "join needs a ticket");
    }
    case "exit": {
      // The data is everything behind the blank that follows the status, blanks and newlines among it.
      const [, digits = "", data = ""] = /^(\d{1,3})(?: ([^]*))?$/.exec(rest) ?? [];
      const status = integer(rest === "" ? "0" : digits, 255);
      if (status === undefined) return refuse("bad-request", "The status must be 0..255");
      if (byteLengthOf(data) > MAX_EXIT_DATA_BYTES) {
        return refuse("bad-request", `The data must be at most ${MAX_EXIT_DATA_BYTES} bytes`);
      }
      // Escaping may triple it, and join's line must fit into one message.
      return byteLengthOf(printable(data)) > MAX_LINE_BYTES
        ? refuse("bad-request", "The data holds too many control characters; encode it")
        : { seq, request: { verb, status, data } };
    }
    case "checkpoint-parent":
      return words.length === 0 ? { seq, request: { verb } } : refuse("bad-request", `${verb} takes no arguments`);
    default:
      return refuse("bad-request", "There is no such request");
  }
}

/** A decimal of 0..`highest`, written plainly. */
function integer(text: string, highest: number): number | undefined {
  if (!/^\d{1,6}$/.test(text)) return undefined;
  const value = Number(text);
  return value <= highest ? value : undefined;
}

/** `SEQ ok TEXT`; `text` is one line. */
export function okAnswer(seq: string, text = ""): string {
  return text === "" ? `${seq} ok\n` : `${seq} ok ${text}\n`;
}

/** `SEQ error CODE MESSAGE`. A message is cut and made one line: its author may be anyone. */
export function errorAnswer(seq: string, error: EngineError): string {
  return `${seq} error ${error.code} ${printable(error.message).slice(0, 512)}\n`;
}

/** The sequence number that an answer answers, or undefined of what is no answer. */
export function answeredSeq(value: Uint8Array): string | undefined {
  const head = new TextDecoder().decode(value.subarray(0, 80));
  return /^([A-Za-z0-9-]{1,64}) (?:ok|error)\b/.exec(head)?.[1];
}

/** What an answer says; undefined if it answers another request. For clients. */
export function parseAnswer(seq: string, text: string): { ok: string; lines: string[] } | EngineError | undefined {
  const [first = "", ...lines] = text.split("\n");
  if (!first.startsWith(`${seq} `)) return undefined;
  const rest = first.slice(seq.length + 1);
  if (rest === "ok" || rest.startsWith("ok ")) {
    if (lines.at(-1) === "") lines.pop();
    return { ok: rest.slice(3), lines };
  }
  const [, code, message] = /^error (\S+) (.*)$/.exec(rest) ?? [];
  return new EngineError(isCode(code) ? code : "failed", message ?? "The agent's answer makes no sense");
}

const CODES = [
  "no-such-ticket",
  "no-such-domain",
  "not-yours",
  "bad-count",
  "bad-request",
  "no-memory",
  "cannot-suspend",
  "busy",
  "ended",
  "limit",
  "timeout",
  "aborted",
  "unsupported",
  "failed",
] as const satisfies readonly EngineError["code"][];

function isCode(code: string | undefined): code is EngineError["code"] {
  return (CODES as readonly (string | undefined)[]).includes(code);
}

/**
 * One page of join's lines: the clones from id `from` on, as many as fit. `next` of the answer is the id that the client asks for
 * next, 0 after the last.
 */
export function joinAnswer(seq: string, clones: readonly CloneInfo[], from: number): string {
  const lines: string[] = [];
  // Room for the first line with its longest numbers.
  let byteLength = seq.length + 32;
  let next = 0;
  for (const clone of clones) {
    if (clone.id < from) continue;
    const line = joinLine(clone);
    byteLength += byteLengthOf(line) + 1;
    if (byteLength > MAX_ANSWER_BYTES && lines.length > 0) {
      next = clone.id;
      break;
    }
    lines.push(line);
  }
  return `${seq} ok lines ${lines.length} ${next}\n${lines.map((line) => `${line}\n`).join("")}`;
}

/** `ID STATUS DATA`, or `ID killed REASON`, `ID lost REASON`. */
export function joinLine(clone: CloneInfo): string {
  const exited = clone.state === "exited";
  const status = exited ? String(clone.status ?? 0) : clone.state;
  const text = printable(exited ? clone.data ?? "" : clone.reason ?? "");
  return `${clone.id} ${status}${text === "" ? "" : ` ${cut(text, MAX_LINE_BYTES)}`}`;
}

/** Encodes what would break a line, `%` among it, as `%XX`. */
export function printable(text: string): string {
  // deno-lint-ignore no-control-regex -- control characters are the point
  return text.replaceAll(/[\x00-\x1f\x7f%]/g, (char) => `%${char.charCodeAt(0).toString(16).padStart(2, "0")}`);
}

/** Undoes {@link printable}. */
export function unprintable(text: string): string {
  return text.replaceAll(/%([01][0-9a-f]|7f|25)/g, (_, digits: string) => String.fromCharCode(parseInt(digits, 16)));
}

function byteLengthOf(text: string): number {
  return new TextEncoder().encode(text).length;
}

/** `text` or its start, in at most `byteLength` bytes, whole characters and whole escapes. Only reasons are ever too long. */
function cut(text: string, byteLength: number): string {
  if (byteLengthOf(text) <= byteLength) return text;
  const { read } = new TextEncoder().encodeInto(text, new Uint8Array(byteLength));
  return text.slice(0, read).replace(/%.?$/, "");
}
