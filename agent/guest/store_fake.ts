/** An xenstore for tests: a map with watches. Watch events come in a later microtask, and are merged like the real client's. */
import type { Clock, GuestStore } from "./ports.ts";

export class FakeStore implements GuestStore {
  readonly nodes = new Map<string, Uint8Array>();
  readonly #watches = new Set<{ path: string; onEvent: () => void }>();

  read(path: string): Promise<Uint8Array | undefined> {
    return Promise.resolve(this.nodes.get(path));
  }

  /** What a guest does, or xl. */
  set(path: string, value: string | Uint8Array): void {
    this.nodes.set(path, typeof value === "string" ? new TextEncoder().encode(value) : value);
    this.fire(path);
  }

  text(path: string): string | undefined {
    const value = this.nodes.get(path);
    return value === undefined ? undefined : new TextDecoder().decode(value);
  }

  writeWithin(base: string, path: string, value: string): Promise<boolean> {
    if (![...this.nodes.keys()].some((node) => node === base || node.startsWith(`${base}/`))) {
      return Promise.resolve(false);
    }
    this.set(path, value);
    return Promise.resolve(true);
  }

  list(path: string): Promise<readonly string[]> {
    const names = [...this.nodes.keys()].filter((node) => node.startsWith(`${path}/`))
      .map((node) => node.slice(path.length + 1).split("/")[0] ?? "");
    return Promise.resolve([...new Set(names)]);
  }

  watch(path: string, onEvent: () => void): Promise<AsyncDisposable> {
    const watch = { path, onEvent };
    this.#watches.add(watch);
    queueMicrotask(onEvent);
    return Promise.resolve({
      [Symbol.asyncDispose]: () => {
        this.#watches.delete(watch);
        return Promise.resolve();
      },
    });
  }

  get watchCount(): number {
    return this.#watches.size;
  }

  /** A domain appears, with an empty tree. */
  introduce(domid: number): void {
    this.nodes.set(`/local/domain/${domid}/domid`, new TextEncoder().encode(String(domid)));
    this.fire("@introduceDomain");
  }

  release(domid: number): void {
    for (const path of this.nodes.keys()) if (path.startsWith(`/local/domain/${domid}/`)) this.nodes.delete(path);
    this.fire("@releaseDomain");
  }

  fire(path: string): void {
    for (const watch of this.#watches) {
      if (path === watch.path || path.startsWith(`${watch.path}/`)) queueMicrotask(watch.onEvent);
    }
  }
}

/** Time that a test moves. Sleepers wake in order. */
export class FakeClock implements Clock {
  #nowMs = 0;
  readonly #sleepers = new Set<{ untilMs: number; wake: () => void }>();

  nowMs(): number {
    return this.#nowMs;
  }

  sleep(ms: number, signal?: AbortSignal): Promise<void> {
    return new Promise((resolve) => {
      const sleeper = { untilMs: this.#nowMs + ms, wake: resolve };
      if (signal?.aborted) return resolve();
      this.#sleepers.add(sleeper);
      signal?.addEventListener("abort", () => this.#sleepers.delete(sleeper) && resolve(), { once: true });
    });
  }

  async advance(ms: number): Promise<void> {
    const endMs = this.#nowMs + ms;
    for (;;) {
      await settle();
      const next = [...this.#sleepers].sort((a, b) => a.untilMs - b.untilMs)[0];
      if (next === undefined || next.untilMs > endMs) break;
      this.#sleepers.delete(next);
      this.#nowMs = next.untilMs;
      next.wake();
    }
    this.#nowMs = endMs;
    await settle();
  }
}

/** Lets everything happen that needs no time. */
export async function settle(): Promise<void> {
  for (let turn = 0; turn < 3; turn++) await new Promise((resolve) => setTimeout(resolve, 0));
}
