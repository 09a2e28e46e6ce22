/** The API as an HTTP application, without a socket. */
import { getLogger } from "@logtape/logtape";
import { Hono } from "hono";
import { type Engine, EngineError, MAX_NAME_LENGTH } from "./engine.ts";
import type { LogBuffer } from "./log_buffer.ts";
import type { Metrics } from "./metrics.ts";
import { openApiDocument } from "./openapi.ts";
import { type Operation, OPERATIONS } from "./operations.ts";
import { httpStatus } from "./status.ts";

const logger = getLogger(["snowflock", "api"]);

/** Largest body of a request. */
export const MAX_BODY_BYTES = 64 * 1024;
const MAX_TAIL = 2000;

export interface AppOptions {
  readonly engine: Engine;
  readonly version: string;
  /** This host's name. */
  readonly host: string;
  readonly metrics: Metrics;
  readonly logs: LogBuffer;
}

export function createApp(options: AppOptions): Hono {
  const { metrics } = options;
  const app = new Hono();
  app.get("/metrics", async (context) => {
    return context.text(await metrics.text(), 200, { "content-type": metrics.registry.contentType });
  });
  app.get("/openapi.json", (context) => context.json(openApiDocument(options.version)));
  app.get("/v1/logs", (context) => {
    const tail = /^\d{1,6}$/.exec(context.req.query("tail") ?? "100");
    if (tail === null) return failure(new EngineError("bad-request", "tail must be a number of lines"));
    const follow = context.req.query("follow") === "true";
    return new Response(options.logs.stream(Math.min(Number(tail[0]), MAX_TAIL), follow), {
      headers: { "content-type": "application/x-ndjson" },
    });
  });
  for (const operation of OPERATIONS) {
    app.on(operation.method.toUpperCase(), operation.path.replace("{name}", ":name"), async (context) => {
      let response: Response;
      try {
        const body = await bodyOf(operation, context.req.raw);
        const name = nameOf(context.req.param("name") ?? "");
        const result = await operation.run(options, name, body);
        response = operation.status === 204
          ? new Response(null, { status: 204 })
          : Response.json(result, { status: operation.status });
      } catch (error) {
        response = failureOf(operation, error);
      }
      metrics.request(operation.id, response.status);
      return response;
    });
  }
  app.notFound(() => failure(new EngineError("bad-request", "There is no such call; see /openapi.json"), 404));
  app.onError((error) => {
    logger.error("a call failed: {error}", { error });
    return failure(new EngineError("failed", "The agent failed; its log says why"));
  });
  return app;
}

/** The body, checked; a missing one counts as `{}`. @throws EngineError */
async function bodyOf(operation: Operation, request: Request): Promise<unknown> {
  if (operation.body === undefined) return undefined;
  const text = new TextDecoder().decode(await boundedBody(request));
  let value: unknown = {};
  if (text !== "") {
    try {
      value = JSON.parse(text);
    } catch (error) {
      throw new EngineError("bad-request", "The body is not JSON", { cause: error });
    }
  }
  const parsed = operation.body.safeParse(value);
  if (parsed.success) return parsed.data;
  const problems = parsed.error.issues.slice(0, 5).map((issue) =>
    `${issue.path.join(".") || "body"}: ${issue.message}`
  );
  throw new EngineError("bad-request", problems.join("; ").slice(0, 500));
}

class BodyTooLarge extends EngineError {}

/** @throws {BodyTooLarge} as soon as it is over {@link MAX_BODY_BYTES}; the rest is not read. */
async function boundedBody(request: Request): Promise<Uint8Array> {
  const body = new Uint8Array(MAX_BODY_BYTES);
  let byteLength = 0;
  for await (const chunk of request.body ?? []) {
    if (byteLength + chunk.length > MAX_BODY_BYTES) {
      throw new BodyTooLarge("bad-request", `A body has at most ${MAX_BODY_BYTES} bytes`);
    }
    body.set(chunk, byteLength);
    byteLength += chunk.length;
  }
  return body.subarray(0, byteLength);
}

function nameOf(name: string): string {
  if (name.length > MAX_NAME_LENGTH) {
    throw new EngineError("bad-request", `A name has at most ${MAX_NAME_LENGTH} characters`);
  }
  return name;
}

function failureOf(operation: Operation, error: unknown): Response {
  if (error instanceof BodyTooLarge) return failure(error, 413);
  if (error instanceof EngineError) return failure(error);
  logger.error("{operation} failed: {error}", { operation: operation.id, error });
  return failure(new EngineError("failed", "The agent failed; its log says why"));
}

function failure(error: EngineError, status: number = httpStatus(error)): Response {
  return Response.json({ error: { code: error.code, message: error.message } }, { status });
}
