/** Says on standard error what the lab is doing: set-up takes minutes the first time. */
export function progress(text: string): void {
  console.error(`lab: ${text}`);
}

/** "3.1 s" since `startMs` (of `performance.now()`). */
export function since(startMs: number): string {
  return `${((performance.now() - startMs) / 1000).toFixed(1)} s`;
}
