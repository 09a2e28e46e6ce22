/** Runs a program that a policy asks: bounded in time and output, and gone afterwards with all that it has started. */

/** Bytes of standard output, and of standard error, that are read. */
const MAX_OUTPUT_BYTES = 1 << 20;

export interface ProgramEnd {
  readonly success: boolean;
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

export interface ProgramOptions {
  readonly input?: string;
  readonly timeoutMs: number;
  readonly env?: Readonly<Record<string, string>>;
}

/** Rejects if it cannot be started, takes too long, or says too much; the message names the program. */
export async function runProgram(
  [program, ...args]: readonly string[],
  { input = "", timeoutMs, env = {} }: ProgramOptions,
): Promise<ProgramEnd> {
  if (program === undefined) throw new Error("No program is named");
  let child: Deno.ChildProcess;
  try {
    // The leader of a process group, so that what it starts can be ended with it.
    child = new Deno.Command(program, {
      args,
      env: { ...env },
      stdin: "piped",
      stdout: "piped",
      stderr: "piped",
      detached: true,
    }).spawn();
  } catch (cause) {
    throw new Error(`Cannot run ${program}: ${cause instanceof Error ? cause.message : cause}`, { cause });
  }
  let stopped: string | undefined;
  const stop = (reason: string) => {
    stopped ??= reason;
    killGroup(child.pid);
  };
  const timer = setTimeout(() => stop(`it did not end within ${timeoutMs} ms`), timeoutMs);
  try {
    const [stdout, stderr, status] = await Promise.all([
      readAll(child.stdout, () => stop(`it wrote more than ${MAX_OUTPUT_BYTES} bytes`)),
      readAll(child.stderr, () => stop(`it wrote more than ${MAX_OUTPUT_BYTES} bytes of errors`)),
      child.status,
      feed(child.stdin, input),
    ]);
    if (stopped !== undefined) throw new Error(`${program} was stopped: ${stopped}`);
    return { success: status.success, code: status.code, stdout, stderr };
  } finally {
    clearTimeout(timer);
    killGroup(child.pid);
  }
}

async function feed(stdin: WritableStream<Uint8Array>, input: string): Promise<void> {
  const writer = stdin.getWriter();
  try {
    await writer.write(new TextEncoder().encode(input));
    await writer.close();
  } catch (error) {
    // It has ended, or closed its input: what it says and its status count.
    if (!(error instanceof Deno.errors.BrokenPipe)) throw error;
  }
}

async function readAll(stream: ReadableStream<Uint8Array>, tooMuch: () => void): Promise<string> {
  const decoder = new TextDecoder();
  let length = 0;
  let text = "";
  for await (const chunk of stream) {
    length += chunk.length;
    if (length > MAX_OUTPUT_BYTES) tooMuch();
    else text += decoder.decode(chunk, { stream: true });
  }
  return text + decoder.decode();
}

function killGroup(pid: number): void {
  try {
    Deno.kill(-pid, "SIGKILL");
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound) && !(error instanceof Error && /ESRCH/.test(error.message))) {
      throw error;
    }
  }
}

/** The first line of a program's errors, for a message. */
export function firstLine(text: string): string {
  return text.trim().split("\n")[0]?.slice(0, 300) ?? "";
}
