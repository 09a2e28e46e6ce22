/** Calls to one peer, over connections that are kept. */
import type { IncomingMessage } from "node:http";
import { Agent, request } from "node:https";
import { dnsNames, type TlsIdentity } from "./tls.ts";
import type { TLSSocket } from "node:tls";
import {
  check,
  decodeMessage,
  encodeMessage,
  ErrorReply,
  HOST_HEADER,
  isPeerErrorCode,
  JSON_TYPE,
  MAX_REPLY_BYTES,
  type Message,
  PeerError,
  PROTOCOL,
  PROTOCOL_HEADER,
  SESSION_HEADER,
} from "./wire.ts";
import type { z } from "zod";

const MAX_CONNECTIONS = 16;

export interface PeerAddress {
  readonly name: string;
  readonly address: string;
  readonly port: number;
}

export interface CallOptions {
  readonly timeoutMs: number;
  readonly signal?: AbortSignal;
  readonly session?: string;
}

export class PeerClient implements Disposable {
  readonly peer: PeerAddress;
  readonly #self: string;
  readonly #agent: Agent;
  readonly #protocol: number;

  /** `self` is this host's name, of which `tls` has the certificate. */
  constructor(self: string, peer: PeerAddress, tls: TlsIdentity, protocol = PROTOCOL) {
    this.peer = peer;
    this.#self = self;
    this.#protocol = protocol;
    this.#agent = new Agent({
      keepAlive: true,
      maxSockets: MAX_CONNECTIONS,
      ca: tls.authority,
      cert: tls.certificate,
      key: tls.key,
      minVersion: "TLSv1.3",
      rejectUnauthorized: true,
      // The certificate must be the peer's own, wherever its address leads.
      servername: peer.name,
    });
  }

  /** Rejects with a {@link PeerError}. */
  async call<T>(path: string, message: Message, reply: z.ZodType<T>, options: CallOptions): Promise<T> {
    const { status, type, protocol, body } = await this.#exchange(path, message, options);
    if (protocol !== `${this.#protocol}`) {
      throw new PeerError(
        "protocol",
        `Host ${this.peer.name} speaks version ${
          protocol ?? "none"
        } of the peers' protocol, ${this.#self} version ${this.#protocol}`,
      );
    }
    const { json } = decodeMessage(type, body);
    if (status === 200) return check(reply, json, `answer of host ${this.peer.name}`);
    const { error } = check(ErrorReply, json, `answer of host ${this.peer.name}`);
    throw new PeerError(isPeerErrorCode(error.code) ? error.code : "failed", error.message);
  }

  [Symbol.dispose](): void {
    this.#agent.destroy();
  }

  #exchange(path: string, message: Message, { timeoutMs, signal, session }: CallOptions): Promise<Answer> {
    const { type, body } = encodeMessage(message);
    const { name, address, port } = this.peer;
    return new Promise<Answer>((resolve, reject) => {
      const fail = (cause: unknown) => {
        settle();
        call.destroy();
        reject(cause instanceof PeerError ? cause : this.#unreachable(cause));
      };
      const onAbort = () => fail(signal?.reason);
      const timer = setTimeout(
        () => fail(new PeerError("unreachable", `Host ${name} did not answer within ${timeoutMs} ms`)),
        timeoutMs,
      );
      const settle = () => {
        clearTimeout(timer);
        signal?.removeEventListener("abort", onAbort);
      };
      const call = request({
        agent: this.#agent,
        host: address,
        port,
        path: `/v1/${path}`,
        method: "POST",
        headers: {
          host: name,
          "content-type": type,
          "content-length": body.length,
          [PROTOCOL_HEADER]: `${this.#protocol}`,
          [HOST_HEADER]: this.#self,
          ...(session === undefined ? {} : { [SESSION_HEADER]: session }),
        },
      });
      call.on("error", fail);
      call.on("response", (response) => {
        const names = dnsNames((response.socket as TLSSocket).getPeerCertificate()?.subjectaltname);
        if (!names.includes(name.toLowerCase())) {
          return fail(new PeerError("identity", `Host ${name} has proved to be ${names.join(", ") || "nobody"}`));
        }
        readAnswer(response).then((answer) => {
          settle();
          resolve(answer);
        }, fail);
      });
      signal?.addEventListener("abort", onAbort, { once: true });
      if (signal?.aborted) onAbort();
      else call.end(body);
    });
  }

  #unreachable(cause: unknown): PeerError {
    const detail = cause instanceof Error ? cause.message : String(cause);
    // Verification failures of rustls name the certificate.
    const code = /certificate/i.test(detail) ? "identity" : "unreachable";
    return new PeerError(code, `Cannot reach host ${this.peer.name}: ${detail}`, { cause });
  }
}

interface Answer {
  readonly status: number;
  readonly type: string | undefined;
  readonly protocol: string | undefined;
  readonly body: Uint8Array;
}

async function readAnswer(response: IncomingMessage): Promise<Answer> {
  const chunks: Uint8Array[] = [];
  let length = 0;
  for await (const chunk of response as AsyncIterable<Uint8Array>) {
    length += chunk.length;
    if (length > MAX_REPLY_BYTES) throw new PeerError("too-large", "An answer is too large");
    chunks.push(chunk);
  }
  const body = new Uint8Array(length);
  let at = 0;
  for (const chunk of chunks) {
    body.set(chunk, at);
    at += chunk.length;
  }
  const protocol = response.headers[PROTOCOL_HEADER];
  return {
    status: response.statusCode ?? 0,
    type: response.headers["content-type"]?.split(";")[0] ?? JSON_TYPE,
    protocol: typeof protocol === "string" ? protocol : undefined,
    body,
  };
}
