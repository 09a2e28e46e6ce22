/** Sockets in other network namespaces, for tests: a child process with FFI, so that the test itself needs none. */

export type PacketRequest =
  | { readonly do: "raw"; readonly namespace: string; readonly device: string }
  | { readonly do: "udp"; readonly namespace: string; readonly address: readonly number[]; readonly port: number }
  | { readonly do: "send"; readonly fd: number; readonly frames: readonly string[] }
  | {
    readonly do: "sendto";
    readonly fd: number;
    readonly frame: string;
    readonly address: readonly number[];
    readonly port: number;
  }
  | { readonly do: "drain"; readonly fd: number }
  | { readonly do: "close"; readonly fd: number };

/** A raw socket bound to a device, or a UDP socket. */
export class TestSocket {
  readonly #tool: PacketTool;
  readonly #fd: number;

  constructor(tool: PacketTool, fd: number) {
    this.#tool = tool;
    this.#fd = fd;
  }

  /** Sends whole frames, of a raw socket. */
  async send(...frames: readonly Uint8Array[]): Promise<void> {
    await this.#tool.ask({ do: "send", fd: this.#fd, frames: frames.map((frame) => frame.toHex()) });
  }

  async sendTo(payload: Uint8Array, address: readonly number[], port: number): Promise<void> {
    await this.#tool.ask({ do: "sendto", fd: this.#fd, frame: payload.toHex(), address, port });
  }

  /** What has come in since the last call; a raw socket hears what its device receives, not what it sends. */
  async drain(): Promise<Uint8Array[]> {
    const frames = await this.#tool.ask({ do: "drain", fd: this.#fd });
    if (!Array.isArray(frames)) throw new Error("the packet tool gave no frames");
    return frames.map((frame) => Uint8Array.fromHex(String(frame)));
  }

  /** Drains until a frame passes or the time is over; gives everything that came. */
  async drainUntil(passes: (frame: Uint8Array) => boolean, timeoutMs = 2000): Promise<Uint8Array[]> {
    const all: Uint8Array[] = [];
    const end = performance.now() + timeoutMs;
    do {
      const fresh = await this.drain();
      all.push(...fresh);
      if (fresh.some(passes)) break;
      await new Promise((resolve) => setTimeout(resolve, 10));
    } while (performance.now() < end);
    return all;
  }
}

export class PacketTool implements AsyncDisposable {
  readonly #child: Deno.ChildProcess;
  readonly #writer: WritableStreamDefaultWriter<Uint8Array>;
  readonly #reader: ReadableStreamDefaultReader<string>;
  #rest = "";
  #last: Promise<unknown> = Promise.resolve();

  constructor() {
    const script = new URL("native_packet_tool.ts", import.meta.url).pathname;
    this.#child = new Deno.Command(Deno.execPath(), {
      args: ["run", "--no-check", "--no-prompt", "--allow-ffi", "--allow-read", script],
      stdin: "piped",
      stdout: "piped",
    }).spawn();
    this.#writer = this.#child.stdin.getWriter();
    this.#reader = this.#child.stdout.pipeThrough(new TextDecoderStream()).getReader();
  }

  async raw(namespace: string, device: string): Promise<TestSocket> {
    return new TestSocket(this, Number(await this.ask({ do: "raw", namespace, device })));
  }

  async udp(namespace: string, address: readonly number[], port: number): Promise<TestSocket> {
    return new TestSocket(this, Number(await this.ask({ do: "udp", namespace, address, port })));
  }

  /** One request and its answer. */
  ask(request: PacketRequest): Promise<unknown> {
    const answer = this.#last.catch(() => {}).then(async () => {
      await this.#writer.write(new TextEncoder().encode(`${JSON.stringify(request)}\n`));
      while (!this.#rest.includes("\n")) {
        const { value, done } = await this.#reader.read();
        if (done) throw new Error("the packet tool has ended");
        this.#rest += value;
      }
      const end = this.#rest.indexOf("\n");
      const { result, error } = JSON.parse(this.#rest.slice(0, end));
      this.#rest = this.#rest.slice(end + 1);
      if (error !== undefined) throw new Error(`${request.do}: ${error}`);
      return result;
    });
    this.#last = answer;
    return answer;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#last.catch(() => {});
    await this.#writer.close();
    await this.#child.status;
    await this.#reader.cancel();
  }
}
