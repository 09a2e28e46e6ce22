/** Runs tasks of one key one after the other, in the order they came; tasks of different keys at the same time. */
export class KeyedQueue {
  readonly #last = new Map<unknown, Promise<unknown>>();

  async run<T>(key: unknown, task: () => Promise<T>): Promise<T> {
    const before = this.#last.get(key);
    const mine = (async () => {
      // The one before has told its own caller whatever went wrong.
      await before?.catch(() => {});
      return await task();
    })();
    this.#last.set(key, mine);
    try {
      return await mine;
    } finally {
      if (this.#last.get(key) === mine) this.#last.delete(key);
    }
  }
}
