/** Waiting on this thread (epoll), and waking another thread (eventfd). */
import { XenError } from "../errors.ts";
import type { Poller, Wakeup } from "../ports.ts";
import { failedWith, type Libc } from "./libc.ts";

const EPOLL_CTL_ADD = 1;
const EPOLL_CTL_DEL = 2;
const EPOLLIN = 1;
/** Level-triggered: what does not fit is reported by the next wait. */
const EVENTS_A_WAIT = 64;
/** struct epoll_event is packed on x86-64: u32 events@0, u64 data@4. */
const EPOLL_EVENT_BYTES = 12;
const EPOLL_EVENT_DATA = 4;
const EINTR = 4;

export class EpollPoller implements Poller {
  readonly #libc: Libc;
  readonly #epoll: number;
  readonly #events = new Uint8Array(EVENTS_A_WAIT * EPOLL_EVENT_BYTES);
  readonly #view = new DataView(this.#events.buffer);

  constructor(libc: Libc) {
    this.#libc = libc;
    this.#epoll = libc.epollCreate();
  }

  add(fd: number): void {
    const event = new Uint8Array(EPOLL_EVENT_BYTES);
    const view = new DataView(event.buffer);
    view.setUint32(0, EPOLLIN, true);
    view.setInt32(EPOLL_EVENT_DATA, fd, true);
    const result = this.#libc.epollControl(this.#epoll, EPOLL_CTL_ADD, fd, event);
    if (result < 0) throw new XenError(`wait for descriptor ${fd}`, result);
  }

  remove(fd: number): void {
    const event = new Uint8Array(EPOLL_EVENT_BYTES);
    const result = this.#libc.epollControl(this.#epoll, EPOLL_CTL_DEL, fd, event);
    if (result < 0) throw new XenError(`stop waiting for descriptor ${fd}`, result);
  }

  wait(timeoutMs: number): number[] {
    const count = this.#libc.epollWait(this.#epoll, this.#events, EVENTS_A_WAIT, timeoutMs);
    if (count === -EINTR) return [];
    if (count < 0) throw new XenError("wait for events", count);
    return Array.from(
      { length: count },
      (_, index) => this.#view.getInt32(index * EPOLL_EVENT_BYTES + EPOLL_EVENT_DATA, true),
    );
  }

  [Symbol.dispose](): void {
    this.#libc.close(this.#epoll);
  }
}

export class EventfdWakeup implements Wakeup {
  readonly fd: number;
  readonly #libc: Libc;
  readonly #owned: boolean;
  readonly #count = new Uint8Array(8);

  /** Makes an eventfd, or uses one that another thread made and owns. */
  constructor(libc: Libc, fd?: number) {
    this.#libc = libc;
    this.#owned = fd === undefined;
    this.fd = fd ?? libc.eventfd();
  }

  signal(): void {
    const result = this.#libc.write(this.fd, Uint8Array.of(1, 0, 0, 0, 0, 0, 0, 0));
    // EAGAIN: the counter is full, so it is signalled.
    if (result < 0 && !failedWith(result, "EAGAIN")) throw new XenError("wake a thread", result);
  }

  drain(): void {
    const result = this.#libc.read(this.fd, this.#count);
    if (result < 0 && !failedWith(result, "EAGAIN")) throw new XenError("take back a wake-up", result);
  }

  [Symbol.dispose](): void {
    if (this.#owned) this.#libc.close(this.fd);
  }
}
