/** The API on its socket, ready to run. */
import { createApp } from "./app.ts";
import type { Engine } from "./engine.ts";
import type { LogBuffer } from "./log_buffer.ts";
import { Metrics } from "./metrics.ts";
import { serveOnSocket } from "./socket.ts";

export interface ApiServerOptions {
  readonly engine: Engine;
  /** Path of the Unix socket. */
  readonly socket: string;
  readonly version: string;
  /** This host's name. */
  readonly host: string;
  readonly logs: LogBuffer;
}

/** Serves until disposed of. @throws {SocketError} if another agent serves the socket. */
export async function serveApi(options: ApiServerOptions): Promise<AsyncDisposable> {
  const stack = new AsyncDisposableStack();
  try {
    const metrics = stack.use(new Metrics(options.engine, options.version));
    const app = createApp({ ...options, metrics });
    stack.use(await serveOnSocket(options.socket, (request) => app.fetch(request)));
  } catch (error) {
    await stack.disposeAsync();
    throw error;
  }
  return stack;
}
