/** The memory thread without a thread: a test gives it its turns. */
import { MEMORY_METHODS, type MemoryCalls } from "../../agent/memory/calls.ts";
import { MemoryService, type MemoryServiceOptions } from "../../agent/memory/service.ts";
import type { Poller } from "../../hypercall/ports.ts";
import { ThreadCallError } from "../../hypercall/thread_calls.ts";
import type { Xen } from "../../hypercall/xen_api.ts";
import type { SimMachine } from "../sim/mod.ts";

export class SimMemoryThread implements Disposable {
  readonly service: MemoryService;
  /** As the main thread has them: performed in the thread's next turn, arguments and errors copied. */
  readonly calls: MemoryCalls;
  /** Why the thread ended, if it did. */
  died: unknown;
  readonly #machine: SimMachine;
  readonly #poller: Poller;
  #queue: (() => void)[] = [];

  constructor(machine: SimMachine, xen: Xen, options: MemoryServiceOptions) {
    this.#machine = machine;
    this.#poller = machine.openPoller();
    this.service = new MemoryService(machine, xen, this.#poller, options);
    this.calls = Object.fromEntries(
      MEMORY_METHODS.map((name) => [name, (...args: unknown[]) => this.#call(name, args)]),
    ) as unknown as MemoryCalls;
  }

  #call(name: typeof MEMORY_METHODS[number], args: readonly unknown[]): Promise<unknown> {
    const copied: unknown[] = structuredClone([...args]);
    return new Promise((resolve, reject) => {
      this.#queue.push(() => {
        const answer = new Promise((perform) => perform(Reflect.apply(this.service[name], this.service, copied)));
        answer.then((value) => resolve(structuredClone(value)), (error) => reject(threadError(error)));
      });
    });
  }

  /** One round of `agent/memory/loop.ts`. */
  turn(): void {
    if (this.died !== undefined || this.#machine.killed) return;
    try {
      for (const fd of this.#poller.wait(0)) this.service.onReadable(fd);
      for (const perform of this.#queue.splice(0)) perform();
      this.service.background();
      this.service.takeSettled();
    } catch (error) {
      this.died = error;
    }
  }

  [Symbol.dispose](): void {
    this.service[Symbol.dispose]();
    this.#poller[Symbol.dispose]();
  }
}

function threadError(error: unknown): ThreadCallError {
  if (!(error instanceof Error)) return new ThreadCallError("Error", String(error), undefined);
  const code: unknown = Reflect.get(error, "code");
  return new ThreadCallError(error.name, error.message, typeof code === "string" ? code : undefined);
}
