/** A TCP connection's way between two hosts, that can be cut: then nothing goes through, and nobody is told. */
export class FakeCable implements AsyncDisposable {
  readonly port: number;
  readonly #listener: Deno.TcpListener;
  readonly #target: number;
  readonly #open = new Set<Deno.TcpConn>();
  readonly #accepting: Promise<void>;
  #cut = false;

  /** Leads to `target` on loopback. */
  constructor(target: number) {
    this.#target = target;
    this.#listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
    this.port = this.#listener.addr.port;
    this.#accepting = this.#accept();
  }

  cut(): void {
    this.#cut = true;
  }

  /** Lets new connections through; those that were cut have gone stale. */
  mend(): void {
    this.#cut = false;
    for (const connection of this.#open) close(connection);
    this.#open.clear();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#listener.close();
    this.mend();
    await this.#accepting;
  }

  async #accept(): Promise<void> {
    for await (const near of this.#listener) {
      this.#open.add(near);
      if (!this.#cut) void this.#lead(near);
    }
  }

  async #lead(near: Deno.TcpConn): Promise<void> {
    try {
      const far = await Deno.connect({ hostname: "127.0.0.1", port: this.#target });
      this.#open.add(far);
      await Promise.all([this.#pump(near, far), this.#pump(far, near)]);
    } catch {
      // The other end is not there, or has gone: so is this one.
      if (!this.#cut) close(near);
    }
  }

  async #pump(from: Deno.TcpConn, to: Deno.TcpConn): Promise<void> {
    const buffer = new Uint8Array(65536);
    try {
      while (true) {
        const length = await from.read(buffer);
        if (this.#cut) return;
        if (length === null) break;
        for (let at = 0; at < length;) at += await to.write(buffer.subarray(at, length));
      }
    } finally {
      if (!this.#cut) {
        this.#open.delete(from);
        this.#open.delete(to);
        close(from);
        close(to);
      }
    }
  }
}

function close(connection: Deno.TcpConn): void {
  try {
    connection.close();
  } catch (error) {
    if (!(error instanceof Deno.errors.BadResource)) throw error;
  }
}
