/** The log: one JSON object a line, on standard error and in a {@link LogBuffer}. */
import { configure, type LogRecord, reset } from "@logtape/logtape";
import type { LogBuffer } from "./log_buffer.ts";

/** Longest line; what is over is cut off. */
const MAX_TEXT = 4096;
/** Depth of nested values that is written. */
const MAX_DEPTH = 4;
const MAX_ITEMS = 50;
/** A property of such a name is never written, wherever it is. */
const SECRET = /secret|password|passphrase|private|token|seed|credential|^(.*_)?key$|Key$/i;

export interface LoggingOptions {
  readonly level: "debug" | "info" | "warning" | "error";
  /** Takes a line with its newline; standard error. */
  readonly write: (line: string) => void;
  readonly buffer?: LogBuffer;
}

/** Sends the program's log there. Disposing of it ends that. */
export async function startLogging(options: LoggingOptions): Promise<AsyncDisposable> {
  const sink = (record: LogRecord) => {
    const line = formatRecord(record);
    options.buffer?.push(line);
    options.write(`${line}\n`);
  };
  await configure({
    reset: true,
    sinks: { lines: sink },
    loggers: [
      { category: ["snowflock"], sinks: ["lines"], lowestLevel: options.level },
      { category: ["logtape", "meta"], sinks: ["lines"], lowestLevel: "warning" },
    ],
  });
  return { [Symbol.asyncDispose]: () => reset() };
}

/** `{"time":...,"level":...,"logger":...,"message":...}` and the record's properties, without secrets, without a newline. */
export function formatRecord(record: LogRecord): string {
  // The parts of a message take turns: text, value, text, ...
  const message = record.message.map((part, index) => index % 2 === 0 ? String(part) : plain(part)).join("");
  const line: Record<string, unknown> = {
    time: new Date(record.timestamp).toISOString(),
    level: record.level,
    logger: record.category.join("."),
    message: cut(message),
  };
  for (const [key, value] of Object.entries(record.properties)) {
    if (!Object.hasOwn(line, key)) line[key] = SECRET.test(key) ? "[secret]" : writable(value, MAX_DEPTH);
  }
  return JSON.stringify(line);
}

function plain(value: unknown): string {
  if (value instanceof Error) return value.message;
  const written = writable(value, MAX_DEPTH);
  return typeof written === "string" ? written : JSON.stringify(written) ?? "";
}

/** `value` as JSON can hold it: bounded, without secrets. */
function writable(value: unknown, depth: number): unknown {
  if (typeof value === "string") return cut(value);
  if (typeof value === "bigint") return value.toString();
  if (value instanceof Error) {
    const { name, message, stack, cause } = value;
    const code = "code" in value && typeof value.code === "string" ? { code: value.code } : {};
    const more = depth > 0 && cause !== undefined ? { cause: writable(cause, depth - 1) } : {};
    return { name, message: cut(message), ...code, stack: cut(stack ?? ""), ...more };
  }
  // Bytes may be pages of a guest, or keys.
  if (ArrayBuffer.isView(value)) return `[${value.byteLength} bytes]`;
  if (typeof value === "function" || typeof value === "symbol") return `[${typeof value}]`;
  if (typeof value !== "object" || value === null) return value;
  if (depth === 0) return "[...]";
  if (Array.isArray(value)) return value.slice(0, MAX_ITEMS).map((item) => writable(item, depth - 1));
  const entries = Object.entries(value).slice(0, MAX_ITEMS);
  return Object.fromEntries(
    entries.map(([key, item]) => [key, SECRET.test(key) ? "[secret]" : writable(item, depth - 1)]),
  );
}

function cut(text: string): string {
  return text.length <= MAX_TEXT ? text : `${text.slice(0, MAX_TEXT)}...`;
}
