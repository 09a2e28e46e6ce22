/** What a command line touches: terminal, files, interrupts. */

export interface CliIo {
  /** Standard output. */
  out(text: string): void;
  /** Standard error. */
  err(text: string): void;
  /** Rejects with NotFound where there is no such file. */
  readText(path: string): Promise<string>;
  env(name: string): string | undefined;
  /** Calls back at Ctrl-C or SIGTERM, until the result is disposed of. */
  onInterrupt(listener: () => void): Disposable;
}

/** The process's own. */
export const PROCESS_IO: CliIo = {
  out: (text) => writeAll(Deno.stdout, text),
  err: (text) => writeAll(Deno.stderr, text),
  readText: (path) => Deno.readTextFile(path),
  env: (name) => Deno.env.get(name),
  onInterrupt: (listener) => {
    const signals = ["SIGINT", "SIGTERM"] as const;
    for (const signal of signals) Deno.addSignalListener(signal, listener);
    return {
      [Symbol.dispose]: () => {
        for (const signal of signals) Deno.removeSignalListener(signal, listener);
      },
    };
  },
};

function writeAll(stream: { writeSync(bytes: Uint8Array): number }, text: string): void {
  let bytes = new TextEncoder().encode(text);
  try {
    while (bytes.length > 0) bytes = bytes.subarray(stream.writeSync(bytes));
  } catch (error) {
    // `snowflock list | head`: whoever read is satisfied.
    if (!(error instanceof Deno.errors.BrokenPipe)) throw error;
  }
}
