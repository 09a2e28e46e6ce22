/** Descriptors of a simulated process that can be waited for. Waiting never blocks: whoever drives the test decides what happens next. */
import { errno, XenError } from "../../hypercall/errors.ts";
import type { Poller, Wakeup } from "../../hypercall/ports.ts";

/** The first ones are a process' standard streams. */
const FIRST_FD = 3;

export class Descriptors {
  readonly #readable = new Map<number, () => boolean>();
  readonly #counters = new Map<number, { signals: number }>();
  #next = FIRST_FD;

  open(readable: () => boolean): number {
    const fd = this.#next++;
    this.#readable.set(fd, readable);
    return fd;
  }

  openCounter(): number {
    const counter = { signals: 0 };
    const fd = this.open(() => counter.signals > 0);
    this.#counters.set(fd, counter);
    return fd;
  }

  counter(fd: number): { signals: number } | undefined {
    return this.#counters.get(fd);
  }

  close(fd: number): void {
    this.#readable.delete(fd);
    this.#counters.delete(fd);
  }

  has(fd: number): boolean {
    return this.#readable.has(fd);
  }

  isReadable(fd: number): boolean {
    return this.#readable.get(fd)?.() ?? false;
  }
}

export class SimPoller implements Poller {
  readonly #descriptors: Descriptors;
  readonly #added = new Set<number>();

  constructor(descriptors: Descriptors) {
    this.#descriptors = descriptors;
  }

  add(fd: number): void {
    if (!this.#descriptors.has(fd)) throw new XenError(`wait for descriptor ${fd}`, errno("EINVAL"));
    if (this.#added.has(fd)) throw new XenError(`wait for descriptor ${fd}`, errno("EEXIST"));
    this.#added.add(fd);
  }

  remove(fd: number): void {
    if (!this.#added.delete(fd)) throw new XenError(`stop waiting for descriptor ${fd}`, errno("ENOENT"));
  }

  /** What is readable now, whatever the time-out. A descriptor that was closed has left the poller, as in the kernel. */
  wait(_timeoutMs: number): number[] {
    return [...this.#added].filter((fd) => this.#descriptors.isReadable(fd));
  }

  [Symbol.dispose](): void {
    this.#added.clear();
  }
}

export class SimWakeup implements Wakeup {
  readonly fd: number;
  readonly #descriptors: Descriptors;
  readonly #owned: boolean;

  constructor(descriptors: Descriptors, fd?: number) {
    this.#descriptors = descriptors;
    this.#owned = fd === undefined;
    this.fd = fd ?? descriptors.openCounter();
  }

  signal(): void {
    this.#counter("wake a thread").signals++;
  }

  drain(): void {
    this.#counter("take back a wake-up").signals = 0;
  }

  #counter(operation: string): { signals: number } {
    const counter = this.#descriptors.counter(this.fd);
    if (counter === undefined) throw new XenError(operation, errno("EINVAL"));
    return counter;
  }

  [Symbol.dispose](): void {
    if (this.#owned) this.#descriptors.close(this.fd);
  }
}
