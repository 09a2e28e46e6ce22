/** The Worker of thread_calls_test.ts: it blocks as a real one does in epoll, on shared memory in place of descriptors. */
import { errno, XenError } from "./errors.ts";
import { CallServer, withTransfer, workerEndpoint } from "./thread_calls.ts";

export class Service {
  #blocked = 0;

  add(left: number, right: number): number {
    return left + right;
  }
  async later(value: string, turns: number): Promise<string> {
    for (let turn = 0; turn < turns; turn++) await new Promise((resolve) => setTimeout(resolve, 1));
    return value;
  }
  pause(domid: number): void {
    throw new XenError(`pause domain ${domid}`, errno("ESRCH"));
  }
  move(buffer: ArrayBuffer): { readonly buffer: ArrayBuffer; readonly byteLength: number } {
    return withTransfer({ buffer, byteLength: buffer.byteLength }, [buffer]);
  }
  unclonable(): () => void {
    return () => {};
  }
  never(): Promise<void> {
    return new Promise(() => {});
  }
  crash(): void {
    queueMicrotask(() => {
      throw new Error("out of order");
    });
  }
  /** How often the thread has blocked. */
  blocked(): number {
    return this.#blocked;
  }
  /** Blocks from now on until `signal` is more than 0. */
  block(signal: Int32Array): void {
    this.#loop(signal);
  }
  async #loop(signal: Int32Array): Promise<void> {
    for (;;) {
      this.#blocked++;
      Atomics.wait(signal, 0, 0, server.busy ? 1 : Infinity);
      Atomics.store(signal, 0, 0);
      await server.turn();
    }
  }
  end(): void {
    server[Symbol.dispose]();
    self.close();
  }
}

const server = new CallServer(workerEndpoint(), new Service());
