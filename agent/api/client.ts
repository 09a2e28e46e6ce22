/** The API's client: calls an agent over its Unix socket. */
import type { z } from "zod";
import {
  type CloneInfo,
  type DomainSummary,
  EngineError,
  type ForkReport,
  type Identity,
  type TicketInfo,
  type TicketRequest,
} from "./engine.ts";
import {
  ClonesSchema,
  DomainsSchema,
  ErrorSchema,
  ForkReportSchema,
  IdentitySchema,
  ShownSchema,
  TicketInfoSchema,
  TicketsSchema,
  VersionSchema,
} from "./schemas.ts";
import { isErrorCode } from "./status.ts";

/** Largest answer read: 1,000 tickets of a few clones, or one of 1,000 clones with all their data. */
const MAX_ANSWER_BYTES = 64 * 1024 * 1024;

/** A wait is made of calls this long: an interrupted client leaves the agent a call for no longer. */
const JOIN_CALL_MS = 5000;

/** No agent answers on the socket, or what answers is none. */
export class AgentUnreachable extends Error {
  override readonly name = "AgentUnreachable";
}

export interface CallControl {
  /** Gives the call up. What the agent has begun it completes. */
  readonly signal?: AbortSignal;
}

export class ApiClient implements Disposable {
  readonly #socket: string;
  readonly #origin: string;
  readonly #http: Deno.HttpClient;

  /** Connects with the first call. `socket` is a path, or the URL of a tunnel to it, such as ssh makes. */
  constructor(socket: string | URL) {
    this.#socket = `${socket}`;
    const tunnel = typeof socket !== "string";
    this.#origin = tunnel ? socket.origin : "http://localhost";
    this.#http = Deno.createHttpClient(tunnel ? {} : { proxy: { transport: "unix", path: socket } });
  }

  version(control?: CallControl): Promise<{ version: string; host: string }> {
    return this.#call("GET", "/v1/version", VersionSchema, undefined, control);
  }

  async list(control?: CallControl): Promise<readonly TicketInfo[]> {
    return (await this.#call("GET", "/v1/tickets", TicketsSchema, undefined, control)).tickets;
  }

  requestTicket(request: TicketRequest, control?: CallControl): Promise<TicketInfo> {
    return this.#call("POST", "/v1/tickets", TicketInfoSchema, request, control);
  }

  clone(ticket: string, options: { fill?: boolean } = {}, control?: CallControl): Promise<ForkReport> {
    return this.#call("POST", `/v1/tickets/${encodeURIComponent(ticket)}/clone`, ForkReportSchema, options, control);
  }

  /** Waits for ever unless told otherwise; at the end of `timeoutMs` EngineError `timeout`. */
  async join(
    ticket: string,
    options: { timeoutMs?: number } = {},
    control?: CallControl,
  ): Promise<readonly CloneInfo[]> {
    const path = `/v1/tickets/${encodeURIComponent(ticket)}/join`;
    const endMs = performance.now() + (options.timeoutMs ?? Infinity);
    for (;;) {
      const leftMs = Math.max(0, endMs - performance.now());
      const timeoutMs = Math.ceil(Math.min(JOIN_CALL_MS, leftMs));
      try {
        return (await this.#call("POST", path, ClonesSchema, { timeoutMs }, control)).clones;
      } catch (error) {
        const again = error instanceof EngineError && error.code === "timeout" && leftMs > JOIN_CALL_MS;
        if (!again) throw error;
      }
    }
  }

  async kill(ticket: string, control?: CallControl): Promise<void> {
    await this.#fetch("DELETE", `/v1/tickets/${encodeURIComponent(ticket)}`, undefined, control);
  }

  checkpoint(domain: string | number, control?: CallControl): Promise<TicketInfo> {
    const path = `/v1/domains/${encodeURIComponent(domain)}/checkpoint`;
    return this.#call("POST", path, TicketInfoSchema, undefined, control);
  }

  show(name: string, control?: CallControl): Promise<TicketInfo | CloneInfo> {
    return this.#call("GET", `/v1/show/${encodeURIComponent(name)}`, ShownSchema, undefined, control);
  }

  async domains(control?: CallControl): Promise<readonly DomainSummary[]> {
    return (await this.#call("GET", "/v1/domains", DomainsSchema, undefined, control)).domains;
  }

  identity(domid: number, control?: CallControl): Promise<Identity> {
    return this.#call("GET", `/v1/domains/${domid}/identity`, IdentitySchema, undefined, control);
  }

  async cloneExited(domid: number, status: number, data: string, control?: CallControl): Promise<void> {
    await this.#fetch("POST", `/v1/domains/${domid}/exit`, { status, data }, control);
  }

  /** The agent's log: `tail` lines of the past, then, with `follow`, those to come. */
  async logs(options: { tail: number; follow: boolean }, control?: CallControl): Promise<ReadableStream<Uint8Array>> {
    const path = `/v1/logs?tail=${options.tail}&follow=${options.follow}`;
    const response = await this.#send("GET", path, undefined, control);
    if (!response.ok) throw await errorOf(response);
    return response.body ?? new ReadableStream({ start: (controller) => controller.close() });
  }

  async metrics(control?: CallControl): Promise<string> {
    return new TextDecoder().decode(await this.#fetch("GET", "/metrics", undefined, control));
  }

  [Symbol.dispose](): void {
    this.#http.close();
  }

  async #call<T>(
    method: string,
    path: string,
    schema: z.ZodType<T>,
    body: unknown,
    control: CallControl | undefined,
  ): Promise<T> {
    const bytes = await this.#fetch(method, path, body, control);
    try {
      return schema.parse(JSON.parse(new TextDecoder().decode(bytes)));
    } catch (error) {
      throw new AgentUnreachable(`What answers on ${this.#socket} is no agent of this version`, { cause: error });
    }
  }

  async #fetch(method: string, path: string, body: unknown, control?: CallControl): Promise<Uint8Array> {
    const response = await this.#send(method, path, body, control);
    if (!response.ok) throw await errorOf(response);
    return await bounded(response);
  }

  async #send(method: string, path: string, body: unknown, control: CallControl | undefined): Promise<Response> {
    try {
      return await fetch(`${this.#origin}${path}`, {
        client: this.#http,
        method,
        ...(body === undefined ? {} : { body: JSON.stringify(body), headers: { "content-type": "application/json" } }),
        ...(control?.signal === undefined ? {} : { signal: control.signal }),
      });
    } catch (error) {
      if (control?.signal?.aborted) throw new EngineError("aborted", "Interrupted", { cause: error });
      const remedy = "is it running, and may you use the socket? (snowflock agent)";
      throw new AgentUnreachable(`Cannot reach an agent at ${this.#socket}: ${remedy}`, { cause: error });
    }
  }
}

async function errorOf(response: Response): Promise<Error> {
  const text = new TextDecoder().decode(await bounded(response));
  try {
    const { error } = ErrorSchema.parse(JSON.parse(text));
    return new EngineError(isErrorCode(error.code) ? error.code : "failed", error.message);
  } catch (cause) {
    return new AgentUnreachable(`The answer is HTTP ${response.status} and no error of an agent`, { cause });
  }
}

async function bounded(response: Response): Promise<Uint8Array> {
  const chunks: Uint8Array[] = [];
  let byteLength = 0;
  for await (const chunk of response.body ?? []) {
    byteLength += chunk.length;
    if (byteLength > MAX_ANSWER_BYTES) throw new AgentUnreachable(`The answer has over ${MAX_ANSWER_BYTES} bytes`);
    chunks.push(chunk);
  }
  const bytes = new Uint8Array(byteLength);
  let offset = 0;
  for (const chunk of chunks) {
    bytes.set(chunk, offset);
    offset += chunk.length;
  }
  return bytes;
}
