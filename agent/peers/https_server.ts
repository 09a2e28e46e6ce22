/** HTTPS for peers: node:https asks for and verifies client certificates; requests go on as web requests. */
import { createServer, type Server } from "node:https";
import type { IncomingMessage, ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import type { TLSSocket } from "node:tls";
import { getLogger } from "@logtape/logtape";
import { dnsNames, type TlsIdentity } from "./tls.ts";
import { MAX_BODY_BYTES, PROTOCOL, PROTOCOL_HEADER } from "./wire.ts";

/** A handshake, a header, a body: each must have come in within this time. */
const RECEIVE_TIMEOUT_MS = 30_000;
/** Answers, such as the making of shells, may take long. */
const IDLE_TIMEOUT_MS = 10 * 60_000;
/** Calls of one connection one after the other; a host keeps few connections. */
const CONNECTIONS_A_PEER = 32;
const OUR_HEADERS = /^(x-snowflock-[a-z]+|content-type)$/;

/** Answers a request of a caller whose certificate holds `names`. */
export type PeerHandler = (request: Request, names: readonly string[]) => Promise<Response>;

export interface PeerListener extends AsyncDisposable {
  readonly port: number;
}

export interface ListenOptions {
  readonly address: string;
  /** 0: any. */
  readonly port: number;
  readonly tls: TlsIdentity;
  readonly peers: number;
  readonly maxBodyBytes?: number;
}

class TooLarge extends Error {}

/** Serves until disposed of, which cuts what is under way. Rejects if the address cannot be listened on. */
export async function listenForPeers(options: ListenOptions, handler: PeerHandler): Promise<PeerListener> {
  const log = getLogger(["snowflock", "peers"]);
  const server = createServer({
    ca: options.tls.authority,
    cert: options.tls.certificate,
    key: options.tls.key,
    requestCert: true,
    rejectUnauthorized: true,
    minVersion: "TLSv1.3",
    handshakeTimeout: RECEIVE_TIMEOUT_MS,
  }, (request, response) => {
    answer(request, response, handler, options.maxBodyBytes ?? MAX_BODY_BYTES).catch((error) => {
      log.warn("a peer's call was cut off", { error });
      response.destroy();
    });
  });
  server.maxConnections = CONNECTIONS_A_PEER * (options.peers + 1);
  server.headersTimeout = RECEIVE_TIMEOUT_MS;
  server.requestTimeout = RECEIVE_TIMEOUT_MS;
  server.timeout = IDLE_TIMEOUT_MS;
  server.on("tlsClientError", (error) => log.debug("a connection was refused", { error }));
  await new Promise<void>((resolve, reject) => {
    server.once(
      "error",
      (cause) =>
        reject(new Error(`Cannot listen on ${options.address} port ${options.port}: ${cause.message}`, { cause })),
    );
    server.listen(options.port, options.address, resolve);
  });
  server.on("error", (error) => log.error("the server for peers has failed", { error }));
  return { port: (server.address() as AddressInfo).port, [Symbol.asyncDispose]: () => close(server) };
}

async function close(server: Server): Promise<void> {
  const closed = new Promise<void>((resolve) => server.close(() => resolve()));
  server.closeAllConnections();
  await closed;
}

async function answer(
  incoming: IncomingMessage,
  outgoing: ServerResponse,
  handler: PeerHandler,
  maxBodyBytes: number,
): Promise<void> {
  const names = namesOf(incoming.socket as TLSSocket);
  let response: Response;
  try {
    const body = await readBody(incoming, maxBodyBytes);
    const headers = new Headers();
    for (const [name, value] of Object.entries(incoming.headers)) {
      if (OUR_HEADERS.test(name) && typeof value === "string") headers.set(name, value);
    }
    const method = incoming.method ?? "GET";
    const url = new URL(incoming.url ?? "/", "https://peer/");
    response = await handler(
      new Request(url, { method, headers, ...(method === "POST" ? { body } : {}) }),
      names,
    );
  } catch (error) {
    if (!(error instanceof TooLarge)) throw error;
    // The rest of it is not read: the connection ends with the answer.
    response = Response.json({ error: { code: "too-large", message: error.message } }, {
      status: 413,
      headers: { connection: "close", [PROTOCOL_HEADER]: `${PROTOCOL}` },
    });
  }
  const bytes = await response.bytes();
  if (outgoing.destroyed) return;
  outgoing.writeHead(response.status, { ...Object.fromEntries(response.headers), "content-length": bytes.length });
  outgoing.end(bytes, () => {
    if (response.status === 413) incoming.destroy();
  });
}

function namesOf(socket: TLSSocket): string[] {
  // rejectUnauthorized has ended the others; without a certificate nobody is let in, whatever the settings.
  if (!socket.authorized) return [];
  return dnsNames(socket.getPeerCertificate().subjectaltname);
}

async function readBody(incoming: IncomingMessage, maxBytes: number): Promise<Uint8Array<ArrayBuffer>> {
  const tooLarge = () => new TooLarge(`A call may have at most ${maxBytes} bytes`);
  if (Number(incoming.headers["content-length"] ?? 0) > maxBytes) throw tooLarge();
  const chunks: Uint8Array[] = [];
  let length = 0;
  for await (const chunk of incoming as AsyncIterable<Uint8Array>) {
    length += chunk.length;
    if (length > maxBytes) throw tooLarge();
    chunks.push(chunk);
  }
  const body = new Uint8Array(length);
  let at = 0;
  for (const chunk of chunks) {
    body.set(chunk, at);
    at += chunk.length;
  }
  return body;
}
