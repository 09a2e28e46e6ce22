/**
 * What peers say to each other: HTTP/1.1 over TLS, one POST a call. A body is JSON; where a descriptor goes along it is
 *
 *     u32 bytes of JSON (little-endian)  JSON  descriptor
 *
 * Every message carries the protocol's version in a header. Whatever comes in is bounded before it is read and checked after.
 */
import { z } from "zod";
import { MAX_CLONES, MAX_EXIT_DATA_BYTES } from "../api/engine.ts";
import { MAX_DESCRIPTOR_BYTES } from "../fork/descriptor.ts";

export const PROTOCOL = 1;
export const PROTOCOL_HEADER = "x-snowflock-protocol";
/** Who sends: the name that its certificate proves. */
export const HOST_HEADER = "x-snowflock-host";
export const SESSION_HEADER = "x-snowflock-session";

/** Largest JSON of a call. A start of {@link MAX_CLONES} clones has about 2 KiB of nodes for each. */
export const MAX_JSON_BYTES = 8 << 20;
export const MAX_BODY_BYTES = MAX_DESCRIPTOR_BYTES + MAX_JSON_BYTES + 4;
export const MAX_REPLY_BYTES = 8 << 20;
/** News in one reply. */
export const MAX_NEWS = 256;
/** Longest time that a heartbeat is held back for news. */
export const MAX_HOLD_MS = 10_000;

const id = z.string().regex(/^[0-9a-f]{32}$/, "must be 32 hexadecimal digits");
const ticket = z.string().regex(/^[\w-]{1,64}$/, "must name a ticket");
const cloneId = z.int().min(1).max(MAX_CLONES);
const text = z.string().max(2000);
const count = z.int().nonnegative();
const counters = z.record(z.string().regex(/^\w{1,64}$/), z.number()).refine(
  (record) => Object.keys(record).length <= 128,
  "has too many counters",
);

export const CloneNewsItem = z.discriminatedUnion("kind", [
  z.strictObject({ kind: z.literal("running"), ticket, id: cloneId }),
  z.strictObject({ kind: z.literal("whole"), ticket, id: cloneId }),
  z.strictObject({
    kind: z.literal("exited"),
    ticket,
    id: cloneId,
    status: z.int().min(0).max(255),
    // A string of at most as many bytes has at most as many characters.
    data: z.string().max(MAX_EXIT_DATA_BYTES),
    memory: counters,
  }),
  z.strictObject({ kind: z.literal("ended"), ticket, id: cloneId, reason: text }),
]);

/** A coordinator's heartbeat. It renews what the coordinator has on the host, and is answered as soon as there is news. */
export const HelloRequest = z.strictObject({
  /** One life of the coordinator's agent. */
  instance: id,
  /** One stretch of time in which both sides hear each other. A coordinator that has given a host up begins another. */
  session: id,
  /** No reply has come in this session yet. */
  fresh: z.boolean(),
  /** The last news that came in; the host forgets those. */
  seen: count,
  holdMs: z.int().min(0).max(MAX_HOLD_MS),
});
export const HelloReply = z.strictObject({
  instance: id,
  version: z.string().max(64),
  news: z.array(z.strictObject({ number: z.int().positive(), news: CloneNewsItem })).max(MAX_NEWS),
});

/** With a descriptor of which only the shape counts. */
export const CapacityRequest = z.strictObject({ wanted: cloneId });
export const CapacityReply = z.strictObject({ room: count.max(MAX_CLONES) });

/** With a descriptor of which only the shape counts. */
export const PrepareRequest = z.strictObject({
  ticket,
  family: id,
  clones: z.array(z.strictObject({
    id: cloneId,
    name: z.string().regex(/^[^\p{Cc}/]{1,100}$/u, "must be a name of at most 100 characters"),
    uuid: z.string().regex(/^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/, "must be a UUID"),
  })).min(1).max(MAX_CLONES),
});
export const PrepareReply = z.strictObject({
  prepared: z.array(z.strictObject({
    id: cloneId,
    domid: z.int().min(1).max(0x7fef).optional(),
    shellMs: z.number().nonnegative().optional(),
    error: text.optional(),
  })).max(MAX_CLONES),
});

/** Nodes are the guest's own part of xenstore, which the host checks again: nothing above it is ever written. */
const nodes = z.record(
  z.string().regex(/^data(\/[\w@-][\w@.-]{0,63}){1,8}$/, "must be below data/"),
  z.string().max(4096),
).refine((record) => Object.keys(record).length <= 64, "has too many nodes");

/** With the descriptor. */
export const StartRequest = z.strictObject({
  ticket,
  nodes: z.array(z.tuple([cloneId, nodes])).min(1).max(MAX_CLONES),
  channel: z.strictObject({
    family: id,
    key: z.string().regex(/^[0-9a-f]{64}$/),
    mode: z.enum(["multicast", "unicast"]),
    server: z.string().regex(/^\d{1,3}(\.\d{1,3}){3}:\d{1,5}$/, "must be an IPv4 address with a port"),
  }),
  fill: z.boolean(),
});
export const StartReply = z.strictObject({
  started: z.array(z.strictObject({
    id: cloneId,
    restoreMs: z.number().nonnegative().optional(),
    error: text.optional(),
  })).max(MAX_CLONES),
});

export const EndRequest = z.strictObject({ ticket, ids: z.array(cloneId).max(MAX_CLONES) });
export const EndReply = z.strictObject({});

export const MemoryRequest = z.strictObject({ ticket });
export const MemoryReply = z.strictObject({ clones: z.array(z.tuple([cloneId, counters])).max(MAX_CLONES) });

export const ErrorReply = z.strictObject({
  error: z.strictObject({ code: z.string().max(64), message: z.string().max(4000) }),
});

export type PeerErrorCode =
  /** It did not answer in time, or cannot be reached. */
  | "unreachable"
  /** It proved to be somebody else, or took this host for somebody else. */
  | "identity"
  /** It speaks another version of this protocol. */
  | "protocol"
  /** It does not know the session: it has restarted, or has heard nothing for too long. */
  | "no-session"
  /** What was sent, or came back, cannot be understood. */
  | "bad-message"
  | "too-large"
  | "busy"
  /** Its processor lacks what the guest uses. */
  | "cpu"
  /** Anything else that went wrong there. */
  | "failed";

const CODES: readonly string[] = [
  "unreachable",
  "identity",
  "protocol",
  "no-session",
  "bad-message",
  "too-large",
  "busy",
  "cpu",
  "failed",
] satisfies readonly PeerErrorCode[];

export function isPeerErrorCode(code: string): code is PeerErrorCode {
  return CODES.includes(code);
}

/** A call between hosts that failed. Branch on `code`, never on the message. */
export class PeerError extends Error {
  readonly code: PeerErrorCode;
  constructor(code: PeerErrorCode, message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = "PeerError";
    this.code = code;
  }
}

export interface Message {
  readonly json: unknown;
  readonly attachment?: Uint8Array;
}

export const JSON_TYPE = "application/json";
export const ATTACHED_TYPE = "application/octet-stream";

export function encodeMessage({ json, attachment }: Message): { type: string; body: Uint8Array } {
  const head = new TextEncoder().encode(JSON.stringify(json));
  if (head.length > MAX_JSON_BYTES) throw new PeerError("too-large", `A call of ${head.length} bytes is too large`);
  if (attachment === undefined) return { type: JSON_TYPE, body: head };
  if (attachment.length > MAX_DESCRIPTOR_BYTES) throw new PeerError("too-large", "The descriptor is too large to send");
  const body = new Uint8Array(4 + head.length + attachment.length);
  new DataView(body.buffer).setUint32(0, head.length, true);
  body.set(head, 4);
  body.set(attachment, 4 + head.length);
  return { type: ATTACHED_TYPE, body };
}

/** Throws a {@link PeerError} of code `bad-message`. */
export function decodeMessage(type: string | undefined, body: Uint8Array): Message {
  try {
    if (type === JSON_TYPE) {
      if (body.length > MAX_JSON_BYTES) throw new RangeError("it is too large");
      return { json: parseJson(body) };
    }
    if (type !== ATTACHED_TYPE) throw new TypeError("its content type is unknown");
    if (body.length < 4) throw new RangeError("it is cut short");
    const length = new DataView(body.buffer, body.byteOffset).getUint32(0, true);
    if (length > MAX_JSON_BYTES || 4 + length > body.length) throw new RangeError("it is cut short");
    return { json: parseJson(body.subarray(4, 4 + length)), attachment: body.subarray(4 + length) };
  } catch (cause) {
    throw new PeerError(
      "bad-message",
      `The message cannot be read: ${cause instanceof Error ? cause.message : cause}`,
      {
        cause,
      },
    );
  }
}

function parseJson(bytes: Uint8Array): unknown {
  return JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
}

/** Throws a {@link PeerError} of code `bad-message` that names the first fault. */
export function check<T>(schema: z.ZodType<T>, value: unknown, what: string): T {
  const result = schema.safeParse(value);
  if (result.success) return result.data;
  const [issue] = result.error.issues;
  const at = issue === undefined || issue.path.length === 0 ? "" : `${issue.path.map(String).join(".")}: `;
  throw new PeerError("bad-message", `The ${what} cannot be used: ${at}${issue?.message.slice(0, 200) ?? "no reason"}`);
}
