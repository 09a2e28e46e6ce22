/** A watch's events as an async iterable. */

/** Paths held: beyond it, one event for the watched path stands for all. A guest may change its nodes as fast as it likes. */
const PATHS_MAX = 1024;

export class WatchEvents implements AsyncIterable<string>, AsyncDisposable {
  readonly #watched: string;
  readonly #changed = new Set<string>();
  #watch: AsyncDisposable | undefined;
  #wake: (() => void) | undefined;
  #ended = false;
  #failure: Error | undefined;

  constructor(watched: string) {
    this.#watched = watched;
  }

  /** What to dispose of with this. */
  endWith(watch: AsyncDisposable): void {
    this.#watch = watch;
  }

  push(changed: string): void {
    if (this.#changed.size >= PATHS_MAX) {
      this.#changed.clear();
      this.#changed.add(this.#watched);
    } else {
      this.#changed.add(changed);
    }
    this.#wake?.();
  }

  fail(reason: Error): void {
    if (this.#ended) return;
    this.#failure = reason;
    this.#wake?.();
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<string, void, undefined> {
    for (;;) {
      for (const path of this.#changed) {
        if (this.#ended) return;
        this.#changed.delete(path);
        yield path;
      }
      if (this.#ended) return;
      if (this.#failure !== undefined) throw this.#failure;
      const { promise, resolve } = Promise.withResolvers<void>();
      this.#wake = resolve;
      await promise;
      this.#wake = undefined;
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#ended = true;
    this.#changed.clear();
    this.#wake?.();
    await this.#watch?.[Symbol.asyncDispose]();
  }
}
