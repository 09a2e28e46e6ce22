/**
 * The fork calls for TypeScript programs inside a guest: what `sf` does, over the same protocol.
 *
 *     await using machine = openGuest();
 *     const { ticket } = await machine.requestTicket(4);
 *     const id = await machine.clone(ticket);
 *     if (id > 0) await machine.exit(0, `done by clone ${id}`);
 *     console.log(await machine.join(ticket));
 */
import { openXenbus, openXenstore } from "../../hypercall/xenstore/mod.ts";
import { EngineError } from "../api/engine.ts";
import { NODES } from "./nodes.ts";
import { type Clock, SYSTEM_CLOCK } from "./ports.ts";
import { parseAnswer, unprintable } from "./protocol.ts";

/** The guest's own part of xenstore: paths are relative to its domain. */
export interface GuestLink {
  read(path: string): Promise<string | undefined>;
  write(path: string, value: string): Promise<void>;
}

export interface GuestOptions {
  /** A text never used before, for the number of a request. Default: a random UUID. */
  readonly sequence?: () => string;
  readonly clock?: Clock;
  /** Run in a clone before `clone` returns. {@link openGuest} runs `sf wake`, and with it the machine's hooks. */
  readonly onWake?: (id: number) => Promise<void>;
  /** How long an answer may take; `join` waits for ever. Default 120,000. */
  readonly timeoutMs?: number;
}

/** How a clone ended. */
export interface CloneResult {
  readonly id: number;
  /** `exited` with `status` and `data`; else with the reason as `data`. */
  readonly state: "exited" | "killed" | "lost";
  readonly status?: number;
  readonly data: string;
}

/** Between looks at the answer. The machine may be forked in any of them. */
const POLL_MS = 20;
/** A request is written again after this long: another process may have overwritten it. The same one twice is executed once. */
const REPEAT_MS = 5000;

/** Calls reject with {@link EngineError}, among them `timeout` when no agent answers. One call at a time. */
export class Guest {
  readonly #link: GuestLink;
  readonly #options: Required<GuestOptions>;

  constructor(link: GuestLink, options: GuestOptions = {}) {
    this.#link = link;
    this.#options = {
      sequence: () => crypto.randomUUID(),
      clock: SYSTEM_CLOCK,
      onWake: () => Promise.resolve(),
      timeoutMs: 120_000,
      ...options,
    };
  }

  /** 0 in a machine that is no clone. */
  async id(): Promise<number> {
    const text = await this.#link.read(`${NODES.base}/id`) ?? "0";
    return /^\d{1,4}$/.test(text) ? Number(text) : 0;
  }

  /** Reserves `clones` clones; fewer may be granted. */
  async requestTicket(clones: number): Promise<{ ticket: string; granted: number }> {
    const [ticket = "", granted] = (await this.#call(`request-ticket ${clones}`)).ok.split(" ");
    return { ticket, granted: Number(granted) };
  }

  /** Forks: returns 0 in the parent and 1..granted in the clones. */
  async clone(ticket: string): Promise<number> {
    return await this.#woken((await this.#call(`clone ${ticket}`)).ok);
  }

  /** {@link requestTicket} and {@link clone}. */
  async createClones(clones: number): Promise<{ ticket: string; id: number }> {
    const { ticket } = await this.requestTicket(clones);
    return { ticket, id: await this.clone(ticket) };
  }

  /** Waits until all clones have ended; results in the order of ids. */
  async join(ticket: string): Promise<CloneResult[]> {
    const results: CloneResult[] = [];
    for (let from = 1; from !== 0;) {
      const { ok, lines } = await this.#call(`join ${ticket} ${from}`);
      if (ok === "wait") continue;
      results.push(...lines.map(resultOf));
      from = Number(/^lines \d+ (\d+)$/.exec(ok)?.[1] ?? 0);
    }
    return results;
  }

  /** Ends the clones and the ticket. */
  async kill(ticket: string): Promise<void> {
    await this.#call(`kill ${ticket}`);
  }

  /** Ends this clone, usually before it returns. `data` has at most 2048 bytes. */
  async exit(status = 0, data = ""): Promise<void> {
    await this.#call(data === "" ? `exit ${status}` : `exit ${status} ${data}`);
  }

  /** Stops this machine for ever, as a template. Returns only in clones of it, with their ids. */
  async checkpointParent(): Promise<number> {
    return await this.#woken((await this.#call("checkpoint-parent")).ok);
  }

  async #woken(answer: string): Promise<number> {
    if (!/^\d{1,4}$/.test(answer)) throw new EngineError("failed", `The answer ${answer} is no id`);
    const id = Number(answer);
    if (id > 0) {
      await this.#link.write(NODES.awake, "1");
      await this.#options.onWake(id);
    }
    return id;
  }

  async #call(request: string): Promise<{ ok: string; lines: string[] }> {
    const { clock, sequence, timeoutMs } = this.#options;
    const seq = sequence();
    const startMs = clock.nowMs();
    let writtenMs = -Infinity;
    for (;;) {
      const nowMs = clock.nowMs();
      if (nowMs - writtenMs >= REPEAT_MS) {
        await this.#link.write(NODES.request, `${seq} ${request}`);
        writtenMs = nowMs;
      }
      const answer = parseAnswer(seq, await this.#link.read(NODES.answer) ?? "");
      if (answer instanceof EngineError) throw answer;
      if (answer !== undefined) return answer;
      if (nowMs - startMs > timeoutMs) {
        throw new EngineError("timeout", `No answer in ${timeoutMs} ms: is the agent running?`);
      }
      await clock.sleep(POLL_MS);
    }
  }
}

function resultOf(line: string): CloneResult {
  const [, id, status = "", data = ""] = /^(\d+) (\d+|killed|lost)(?: (.*))?$/.exec(line) ?? [];
  const text = unprintable(data);
  if (status === "killed" || status === "lost") return { id: Number(id), state: status, data: text };
  return { id: Number(id), state: "exited", status: Number(status), data: text };
}

/** The guest that this program runs in, by /dev/xen/xenbus. */
export function openGuest(options: GuestOptions = {}): Guest & AsyncDisposable {
  const xenstore = openXenstore(openXenbus());
  const guest = new Guest(xenstore, { onWake: runHooks, ...options });
  return Object.assign(guest, { [Symbol.asyncDispose]: () => xenstore[Symbol.asyncDispose]() });
}

async function runHooks(): Promise<void> {
  try {
    await new Deno.Command("sf", { args: ["wake"], stdin: "null", stdout: "null" }).output();
  } catch (error) {
    // A guest without `sf` has no hooks.
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  }
}
