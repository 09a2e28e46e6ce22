import { EngineError } from "../api/engine.ts";

/** Turns a failure that has no code of its own into an EngineError `failed`; `what` says what could not be done. */
export async function orEngineError<T>(what: string, work: Promise<T>): Promise<T> {
  try {
    return await work;
  } catch (cause) {
    if (cause instanceof EngineError) throw cause;
    throw new EngineError("failed", `${what}: ${cause instanceof Error ? cause.message : cause}`, { cause });
  }
}
