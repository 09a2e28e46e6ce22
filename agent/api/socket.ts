/** The Unix socket of an agent: one live agent a path, readable by its owner alone, and taken over from one that died. */
import { dirname } from "node:path";

/** Another agent lives on the socket, or something that is no socket is in its place. */
export class SocketError extends Error {
  override readonly name = "SocketError";
}

export interface OwnedSocket extends AsyncDisposable {
  readonly path: string;
}

/**
 * Serves `handler` on a Unix socket of mode 0600. A lock beside it (`PATH.lock`) is held by the process, so it ends with it: a socket
 * without a holder is stale and replaced. Disposing waits for calls under way, at most `drainMs`.
 * @throws {SocketError}
 */
export async function serveOnSocket(
  path: string,
  handler: (request: Request) => Response | Promise<Response>,
  drainMs = 2000,
): Promise<OwnedSocket> {
  await Deno.mkdir(dirname(path), { recursive: true, mode: 0o700 });
  // The lock file stays: were it removed, two agents could hold locks of two files of this name.
  const lock = await Deno.open(`${path}.lock`, { create: true, write: true, mode: 0o600 });
  try {
    if (!await lock.tryLock(true)) throw new SocketError(`Another agent is serving ${path}`);
    await removeStale(path);
    const abort = new AbortController();
    const server = listen(path, handler, abort.signal);
    return {
      path,
      [Symbol.asyncDispose]: async () => {
        const drained = server.shutdown();
        const timer = setTimeout(() => abort.abort(), drainMs);
        await drained;
        clearTimeout(timer);
        await Deno.remove(path).catch((error) => {
          // The server removes its socket itself; which of us is first does not matter.
          if (!(error instanceof Deno.errors.NotFound)) throw error;
        });
        lock.close();
      },
    };
  } catch (error) {
    lock.close();
    throw error;
  }
}

function listen(
  path: string,
  handler: (request: Request) => Response | Promise<Response>,
  signal: AbortSignal,
): Deno.HttpServer<Deno.UnixAddr> {
  // The socket is made with these modes, not changed after: nobody can connect in between. Nothing else runs meanwhile.
  const before = Deno.umask(0o177);
  try {
    return Deno.serve({ path, signal, onListen: () => {} }, (request) => handler(request));
  } finally {
    Deno.umask(before);
  }
}

/** Removes the socket of an agent that died. The caller holds the lock. */
async function removeStale(path: string): Promise<void> {
  try {
    const { isSocket } = await Deno.lstat(path);
    if (isSocket !== true) throw new SocketError(`${path} is there and is no socket`);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return;
    throw error;
  }
  await Deno.remove(path);
}
