/**
 * A program that places clones. It is run for each call, with JSON on its standard input:
 *
 *     {"call": "allocate", "ticket": "t1", "wanted": 4, "hosts": [{"name": "a", "room": 3}, {"name": "b", "room": 8}]}
 *     {"call": "release", "ticket": "t1"}
 *
 * To `allocate` it answers on its standard output, such as `{"placement": {"a": 1, "b": 3}}`; to `release` nothing is read. A
 * status other than 0 is a failure, of which the first line of its standard error tells.
 */
import { z } from "zod";
import { EngineError } from "../api/engine.ts";
import type { Placement } from "../fork/placement.ts";
import { firstLine, runProgram } from "./run_program.ts";

const DEFAULT_TIMEOUT_MS = 30_000;
const Answer = z.strictObject({ placement: z.record(z.string().max(64), z.int().nonnegative()) });

/** `command`: the program and its arguments. */
export function external(command: readonly string[], timeoutMs = DEFAULT_TIMEOUT_MS): Placement {
  const call = async (input: unknown): Promise<string> => {
    const end = await runProgram(command, { input: `${JSON.stringify(input)}\n`, timeoutMs });
    if (!end.success) throw new Error(`${command[0]} ended with status ${end.code}: ${firstLine(end.stderr)}`);
    return end.stdout;
  };
  return {
    async allocate(ticket, wanted, rooms) {
      const hosts = [...rooms].map(([name, room]) => ({ name, room }));
      try {
        return readPlacement(await call({ call: "allocate", ticket, wanted, hosts }), wanted, rooms);
      } catch (cause) {
        throw new EngineError("failed", `Cannot place clones: ${cause instanceof Error ? cause.message : cause}`, {
          cause,
        });
      }
    },
    async release(ticket) {
      await call({ call: "release", ticket });
    },
  };
}

/** Throws an Error that says what is wrong with the answer. */
function readPlacement(text: string, wanted: number, rooms: ReadonlyMap<string, number>): Map<string, number> {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    throw new Error(`the policy's answer is no JSON: ${JSON.stringify(text.slice(0, 100))}`, { cause });
  }
  const result = Answer.safeParse(value);
  if (!result.success) {
    const [issue] = result.error.issues;
    throw new Error(`the policy's answer cannot be used: ${issue?.path.join(".")}: ${issue?.message.slice(0, 200)}`);
  }
  const placed = new Map(Object.entries(result.data.placement).filter(([, count]) => count > 0));
  let sum = 0;
  for (const [host, count] of placed) {
    const room = rooms.get(host);
    if (room === undefined) throw new Error(`the policy named a host that cannot be used: ${host}`);
    if (count > room) throw new Error(`the policy wants ${count} clones on ${host}, which has room for ${room}`);
    sum += count;
  }
  if (sum > wanted) throw new Error(`the policy placed ${sum} clones of ${wanted}`);
  return placed;
}
