/** The calls that peers make, as web requests in and out. Who calls is known by certificate before anything is looked at. */
import { type Context, Hono } from "hono";
import { getLogger } from "@logtape/logtape";
import type { z } from "zod";
import { decodeDescriptor, type Descriptor, DescriptorError } from "../fork/descriptor.ts";
import type { Guests } from "./guests.ts";
import type { PeerHandler } from "./https_server.ts";
import type { Session } from "./session.ts";
import * as wire from "./wire.ts";

/** Calls of one peer at a time. */
const MAX_CALLS = 32;
/** Longest text of an error that is sent. */
const MAX_TEXT = 2000;

const STATUS = {
  identity: 403,
  protocol: 426,
  "no-session": 409,
  "bad-message": 400,
  "too-large": 413,
  busy: 429,
  cpu: 422,
  unreachable: 502,
  failed: 500,
} as const satisfies Record<wire.PeerErrorCode, number>;

export interface AppOptions {
  readonly host: string;
  readonly instance: string;
  readonly version: string;
  /** Names of the hosts that may call. */
  readonly peers: readonly string[];
  readonly protocol?: number;
}

type Env = { Bindings: { readonly names: readonly string[] }; Variables: { readonly peer: string } };

export function peerApp(guests: Guests, options: AppOptions): PeerHandler {
  const { host, protocol = wire.PROTOCOL } = options;
  const peers = new Map(options.peers.map((name) => [name.toLowerCase(), name]));
  const calls = new Map<string, number>();
  const log = getLogger(["snowflock", "peers"]);
  const app = new Hono<Env>();

  app.use(async (context, next) => {
    const claimed = (context.req.header(wire.HOST_HEADER) ?? "").toLowerCase();
    const peer = peers.get(claimed);
    if (peer === undefined || !context.env.names.includes(claimed)) {
      throw new wire.PeerError(
        "identity",
        peer === undefined
          ? `Host ${host} has no peer ${JSON.stringify(claimed.slice(0, 64))} in its configuration`
          : `The caller's certificate is not that of ${peer}`,
      );
    }
    const theirs = context.req.header(wire.PROTOCOL_HEADER) ?? "none";
    if (theirs !== `${protocol}`) {
      throw new wire.PeerError(
        "protocol",
        `Host ${host} speaks version ${protocol} of the peers' protocol, ${peer} version ${theirs.slice(0, 16)}`,
      );
    }
    const under = calls.get(peer) ?? 0;
    if (under >= MAX_CALLS) throw new wire.PeerError("busy", `Host ${host} has ${under} calls of ${peer} under way`);
    calls.set(peer, under + 1);
    context.set("peer", peer);
    try {
      await next();
    } finally {
      calls.set(peer, (calls.get(peer) ?? 1) - 1);
    }
  });

  app.post("/v1/hello", async (context) => {
    const { value } = await read(context, wire.HelloRequest);
    const session = guests.hello(context.get("peer"), value);
    const news = await session.take(value.seen, value.holdMs);
    if (session.over !== undefined) throw new wire.PeerError("no-session", session.over);
    const { instance, version } = options;
    return context.json({ instance, version, news: [...news] } satisfies z.infer<typeof wire.HelloReply>);
  });

  app.post("/v1/capacity", async (context) => {
    sessionOf(context);
    const { value, descriptor } = await readWithDescriptor(context, wire.CapacityRequest);
    return context.json({ room: await guests.capacity(descriptor, value.wanted) });
  });

  app.post("/v1/prepare", async (context) => {
    const session = sessionOf(context);
    const { value, descriptor: shape } = await readWithDescriptor(context, wire.PrepareRequest);
    const prepared = await guests.prepare(session, { ...value, shape });
    return context.json({ prepared: prepared.map(shortened) });
  });

  app.post("/v1/start", async (context) => {
    const session = sessionOf(context);
    const { value, descriptor } = await readWithDescriptor(context, wire.StartRequest);
    const started = await guests.start(session, { ...value, nodes: new Map(value.nodes), descriptor });
    return context.json({ started: started.map(shortened) });
  });

  app.post("/v1/end", async (context) => {
    const session = sessionOf(context);
    const { value } = await read(context, wire.EndRequest);
    await guests.end(session, value.ticket, value.ids);
    return context.json({});
  });

  app.post("/v1/memory", async (context) => {
    const session = sessionOf(context);
    const { value } = await read(context, wire.MemoryRequest);
    return context.json({ clones: await guests.memory(session, value.ticket) });
  });

  app.notFound((context) => context.json(errorBody("bad-message", "There is no such call"), 404));
  app.onError((error, context) => {
    const code = error instanceof wire.PeerError
      ? error.code
      : error instanceof DescriptorError
      ? "bad-message"
      : "failed";
    if (code === "failed") log.error("a peer's call has failed", { error, call: context.req.path });
    else log.info("a peer's call is refused", { error, call: context.req.path });
    return context.json(errorBody(code, error.message), STATUS[code]);
  });

  const sessionOf = (context: Context<Env>): Session =>
    guests.session(context.get("peer"), context.req.header(wire.SESSION_HEADER));

  return async (request, names) => {
    const response = await app.fetch(request, { names });
    response.headers.set(wire.PROTOCOL_HEADER, `${protocol}`);
    return response;
  };
}

async function readMessage(context: Context<Env>): Promise<wire.Message> {
  return wire.decodeMessage(context.req.header("content-type"), new Uint8Array(await context.req.arrayBuffer()));
}

async function read<T>(context: Context<Env>, schema: z.ZodType<T>): Promise<{ value: T }> {
  return { value: wire.check(schema, (await readMessage(context)).json, "call") };
}

async function readWithDescriptor<T>(
  context: Context<Env>,
  schema: z.ZodType<T>,
): Promise<{ value: T; descriptor: Descriptor }> {
  const { json, attachment } = await readMessage(context);
  if (attachment === undefined) throw new wire.PeerError("bad-message", "The call has no descriptor");
  return { value: wire.check(schema, json, "call"), descriptor: decodeDescriptor(attachment) };
}

function errorBody(code: wire.PeerErrorCode, message: string): z.infer<typeof wire.ErrorReply> {
  return { error: { code, message: message.slice(0, MAX_TEXT) } };
}

function shortened<T extends { readonly error?: string }>(result: T): T {
  return result.error === undefined ? result : { ...result, error: result.error.slice(0, MAX_TEXT) };
}
