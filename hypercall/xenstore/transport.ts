/** Ways to xenstored: the Unix socket beside it in dom0, or the kernel's device in any domain. */
import { XenstoreError } from "./errors.ts";

/** A stream of bytes each way. */
export interface XenstoreTransport extends Disposable {
  /** The next bytes, or undefined when the other end has closed. One call at a time. */
  receive(): Promise<Uint8Array | undefined>;
  /** One whole message. One call at a time. */
  send(bytes: Uint8Array): Promise<void>;
}

export const XENSTORED_SOCKET = "/run/xenstored/socket";
export const XENBUS_DEVICE = "/dev/xen/xenbus";
const READ_BYTES = 16_384;

/** xenstored's own socket: only in the domain where it runs, as root. Throws a XenstoreError. */
export async function connectXenstored(path: string = XENSTORED_SOCKET): Promise<XenstoreTransport> {
  const connection = await Deno.connect({ transport: "unix", path }).catch((error: unknown) => {
    throw unreachable(path, "does xenstored run here?", error);
  });
  const buffer = new Uint8Array(READ_BYTES);
  let closed = false;
  return {
    async receive() {
      const count = await connection.read(buffer);
      return count === null ? undefined : buffer.slice(0, count);
    },
    async send(bytes) {
      for (let sent = 0; sent < bytes.byteLength;) sent += await connection.write(bytes.subarray(sent));
    },
    [Symbol.dispose]() {
      if (closed) return;
      closed = true;
      connection.close();
    },
  };
}

/**
 * The kernel's device, for a guest. A read of it blocks, and Deno allows no write to a file that is being read; so two `cat`s share
 * the descriptor: one writes, one reads. A message of the device is 4096 bytes with its header.
 */
export function openXenbus(path: string = XENBUS_DEVICE): XenstoreTransport {
  try {
    Deno.statSync(path);
  } catch (error) {
    throw unreachable(path, "is this a Xen domain?", error);
  }
  const child = new Deno.Command("/bin/sh", {
    // A terminal's Ctrl-C is for this program alone. Only the reader holds the output, so that its end is seen here.
    args: ["-c", 'trap "" INT; exec 3<>"$0" || exit 1; cat <&3 & reader=$!; exec >&3; cat; kill $reader', path],
    stdin: "piped",
    stdout: "piped",
    stderr: "null",
  }).spawn();
  const reader = child.stdout.getReader();
  const writer = child.stdin.getWriter();
  let closed = false;
  return {
    async receive() {
      return (await reader.read()).value;
    },
    async send(bytes) {
      await writer.write(bytes);
    },
    [Symbol.dispose]() {
      if (closed) return;
      closed = true;
      const ignore = () => {};
      // End of input ends the writing cat, which ends the other: nothing here is left to wait for.
      writer.close().catch(ignore);
      reader.cancel().catch(ignore);
      child.unref();
    },
  };
}

function unreachable(path: string, hint: string, cause: unknown): XenstoreError {
  const code = cause instanceof Deno.errors.NotFound
    ? "ENOENT"
    : cause instanceof Deno.errors.PermissionDenied
    ? "EACCES"
    : "ECONNRESET";
  return new XenstoreError(`reach xenstored at ${path} (${hint})`, code, { cause });
}
