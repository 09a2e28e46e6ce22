/** What the guest service needs of the world: xenstore, narrowed, and time. */

export interface GuestStore {
  /** The node's value, or undefined where there is no such node. */
  read(path: string): Promise<Uint8Array | undefined>;
  /**
   * Writes `path` if `base`, a node above it, exists, in one transaction; false if it does not. So a domain's tree does not come to life
   * again because an answer was late. The new node has the permissions of the one above it: the guest owns it.
   */
  writeWithin(base: string, path: string, value: string): Promise<boolean>;
  /** Names of the nodes directly below `path`; none where there is no such node. */
  list(path: string): Promise<readonly string[]>;
  /**
   * Calls `onEvent` when the node or one below it changed, and once at the start. `path` may be `@introduceDomain` or
   * `@releaseDomain`. Events may be merged, never lost.
   */
  watch(path: string, onEvent: () => void): Promise<AsyncDisposable>;
}

export interface Clock {
  /** Milliseconds from some start, never going back. */
  nowMs(): number;
  /** Resolves after `ms`, or at once when `signal` is aborted. */
  sleep(ms: number, signal?: AbortSignal): Promise<void>;
}

/** The machine's own time. */
export const SYSTEM_CLOCK: Clock = {
  nowMs: () => performance.now(),
  sleep: (ms, signal) =>
    new Promise((resolve) => {
      if (signal?.aborted) return resolve();
      const done = () => {
        clearTimeout(timer);
        signal?.removeEventListener("abort", done);
        resolve();
      };
      const timer = setTimeout(done, ms);
      signal?.addEventListener("abort", done, { once: true });
    }),
};
