/**
 * A stand-in for a guest's /dev/xen/xenbus, as two FIFOs that `sf` opens, over a {@link FakeStore}: bytes of the wire protocol
 * (public/io/xs_wire.h) with the device's own ways (drivers/xen/xenbus/xenbus_dev_frontend.c): replies as a stream without bounds, watch events
 * whose header has nothing but type and length, WATCH answered by the kernel.
 */
import { domainPath } from "./nodes.ts";
import type { FakeStore } from "./store_fake.ts";

const READ = 2, WATCH = 4, UNWATCH = 5, WRITE = 11, WATCH_EVENT = 15, ERROR = 16;
const HEADER_BYTES = 16;

export class FakeXenbus implements AsyncDisposable {
  /** The domain that the program is in. A fork moves it. */
  domid: number;
  readonly #store: FakeStore;
  readonly #requests: Deno.FsFile;
  readonly #replies: Deno.FsFile;
  readonly #requestPath: string;
  readonly #served: Promise<void>;
  readonly #watches = new Map<string, AsyncDisposable>();
  #writing: Promise<unknown> = Promise.resolve();
  #closed = false;

  private constructor(
    store: FakeStore,
    domid: number,
    requests: Deno.FsFile,
    replies: Deno.FsFile,
    requestPath: string,
  ) {
    this.#requestPath = requestPath;
    this.#store = store;
    this.domid = domid;
    this.#requests = requests;
    this.#replies = replies;
    this.#served = this.#serve();
  }

  /** Makes the FIFOs `in` and `out` in `directory`. */
  static async open(store: FakeStore, domid: number, directory: string): Promise<FakeXenbus> {
    const paths = FakeXenbus.paths(directory);
    const { success } = await new Deno.Command("mkfifo", { args: paths }).output();
    if (!success) throw new Error(`Cannot make FIFOs in ${directory}`);
    const both = { read: true, write: true };
    const [requests, replies] = [await Deno.open(paths[1], both), await Deno.open(paths[0], both)];
    return new FakeXenbus(store, domid, requests, replies, paths[1]);
  }

  static paths(directory: string): [string, string] {
    return [`${directory}/in`, `${directory}/out`];
  }

  /** What the kernel does in a clone: its watches are registered again, with another xenstored's idea of who it is. */
  async moveTo(domid: number): Promise<void> {
    this.domid = domid;
    const keys = [...this.#watches.keys()];
    for (const key of keys) {
      const [path = "", token = ""] = key.split("\0");
      await this.#unwatch(path, token);
      await this.#watch(path, token);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#closed = true;
    for (const key of [...this.#watches.keys()]) {
      const [path = "", token = ""] = key.split("\0");
      await this.#unwatch(path, token);
    }
    // The reader is woken through its own FIFO, by another descriptor: one descriptor does one thing at a time.
    using waker = await Deno.open(this.#requestPath, { write: true });
    await waker.write(new Uint8Array(HEADER_BYTES));
    await this.#served;
    await this.#writing;
    this.#requests.close();
    this.#replies.close();
  }

  async #serve(): Promise<void> {
    const chunk = new Uint8Array(8192);
    let pending = new Uint8Array();
    for (;;) {
      const count = await this.#requests.read(chunk);
      if (count === null || this.#closed) return;
      pending = Uint8Array.from([...pending, ...chunk.subarray(0, count)]);
      for (;;) {
        if (pending.length < HEADER_BYTES) break;
        const view = new DataView(pending.buffer);
        const end = HEADER_BYTES + view.getUint32(12, true);
        if (end > 4096) throw new Error(`A message of ${end} bytes`);
        if (pending.length < end) break;
        await this.#handle(view.getUint32(0, true), pending.slice(4, 8), pending.slice(HEADER_BYTES, end));
        pending = pending.slice(end);
      }
    }
  }

  async #handle(type: number, id: Uint8Array, payload: Uint8Array): Promise<void> {
    const text = new TextDecoder().decode(payload);
    const [path = "", token = ""] = text.split("\0");
    const absolute = `${domainPath(this.domid)}/${path}`;
    if (path === ".") return this.#send(ERROR, id, "EINVAL\0");
    switch (type) {
      case READ: {
        const value = await this.#store.read(absolute);
        return value === undefined ? this.#send(ERROR, id, "ENOENT\0") : this.#send(READ, id, value);
      }
      case WRITE:
        this.#store.set(absolute, payload.slice(path.length + 1));
        return this.#send(WRITE, id, "OK\0");
      case WATCH:
        this.#send(WATCH, id, "OK\0");
        return await this.#watch(path, token);
      case UNWATCH:
        await this.#unwatch(path, token);
        return this.#send(UNWATCH, id, "OK\0");
      default:
        throw new Error(`No request of type ${type} is expected`);
    }
  }

  async #watch(path: string, token: string): Promise<void> {
    const onEvent = () => this.#send(WATCH_EVENT, Uint8Array.of(0xde, 0xad, 0x81, 0xff), `${path}\0${token}\0`);
    this.#watches.set(
      `${path}\0${token}`,
      await this.#store.watch(`${domainPath(this.domid)}/${path}`, onEvent),
    );
  }

  async #unwatch(path: string, token: string): Promise<void> {
    await this.#watches.get(`${path}\0${token}`)?.[Symbol.asyncDispose]();
    this.#watches.delete(`${path}\0${token}`);
  }

  #send(type: number, id: Uint8Array, payload: string | Uint8Array): void {
    if (this.#closed) return;
    const body = typeof payload === "string" ? new TextEncoder().encode(payload) : payload;
    const message = new Uint8Array(HEADER_BYTES + body.length);
    const view = new DataView(message.buffer);
    view.setUint32(0, type, true);
    message.set(id, 4);
    view.setUint32(12, body.length, true);
    message.set(body, HEADER_BYTES);
    this.#writing = this.#writing.then(() => this.#replies.write(message));
  }
}
