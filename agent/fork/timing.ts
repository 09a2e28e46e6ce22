/** Time, from outside: the engine has no clock of its own, so that the simulator decides when things happen. */
export interface Clock {
  /** Milliseconds since some moment; only differences mean something. */
  nowMs(): number;
  sleep(ms: number): Promise<void>;
}

export const systemClock: Clock = {
  nowMs: () => performance.now(),
  sleep: (ms) => new Promise((resolve) => setTimeout(resolve, ms)),
};
