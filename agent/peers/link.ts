/** The link to one peer, as its coordinator: heartbeats that bring news back, and whether the peer is up. */
import { randomBytes } from "node:crypto";
import { setTimeout as delay } from "node:timers/promises";
import { getLogger } from "@logtape/logtape";
import type { z } from "zod";
import type { CloneNews } from "../fork/clone_host.ts";
import type { PeerClient } from "./client.ts";
import { HelloReply, type Message, PeerError } from "./wire.ts";

export interface LinkOptions {
  /** One life of this agent. */
  readonly instance: string;
  readonly heartbeatMs: number;
  /** After so long without an answer the peer is down. */
  readonly downAfterMs: number;
  readonly nowMs: () => number;
}

export interface PeerState {
  readonly name: string;
  readonly address: string;
  readonly port: number;
  readonly up: boolean;
  /** Since its last change. */
  readonly forMs: number;
  /** Of the program there, once it was up. */
  readonly version?: string;
  /** Why it is not up. */
  readonly error?: string;
}

export class PeerLink implements AsyncDisposable {
  readonly name: string;
  readonly #client: PeerClient;
  readonly #options: LinkOptions;
  readonly #closing = new AbortController();
  readonly #newsListeners: ((news: CloneNews) => void)[] = [];
  readonly #changeListeners: ((up: boolean, reason: string) => void)[] = [];
  readonly #log = getLogger(["snowflock", "peers"]);
  /** Ends with the session. */
  #session = new AbortController();
  #sessionId = newId();
  #seen = 0;
  #up = false;
  #changedMs: number;
  #heardMs: number;
  #version: string | undefined;
  #error: string | undefined = "it has not answered yet";
  #running: Promise<void> | undefined;

  constructor(client: PeerClient, options: LinkOptions) {
    this.name = client.peer.name;
    this.#client = client;
    this.#options = options;
    this.#changedMs = this.#heardMs = options.nowMs();
  }

  get up(): boolean {
    return this.#up;
  }

  get sessionId(): string {
    return this.#sessionId;
  }

  state(): PeerState {
    const { name, address, port } = this.#client.peer;
    return {
      name,
      address,
      port,
      up: this.#up,
      forMs: this.#options.nowMs() - this.#changedMs,
      ...(this.#version === undefined ? {} : { version: this.#version }),
      ...(this.#up || this.#error === undefined ? {} : { error: this.#error }),
    };
  }

  /** What happened to clones there; each thing once. */
  onNews(listener: (news: CloneNews) => void): void {
    this.#newsListeners.push(listener);
  }

  onChange(listener: (up: boolean, reason: string) => void): void {
    this.#changeListeners.push(listener);
  }

  /** Calls in the session of now. Rejects with a {@link PeerError}, at once when the peer goes down. */
  async call<T>(path: string, message: Message, reply: z.ZodType<T>, timeoutMs: number): Promise<T> {
    if (!this.#up) throw new PeerError("unreachable", `Host ${this.name} is down: ${this.#error ?? "it is silent"}`);
    const { signal } = this.#session;
    return await this.#client.call(path, message, reply, { timeoutMs, signal, session: this.#sessionId });
  }

  /** Begins the heartbeats. */
  start(): void {
    this.#running ??= this.#run();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#closing.abort(new PeerError("unreachable", "This agent ends"));
    this.#session.abort(this.#closing.signal.reason);
    await this.#running;
    this.#client[Symbol.dispose]();
  }

  async #run(): Promise<void> {
    const { signal } = this.#closing;
    while (!signal.aborted) {
      try {
        await this.#hello(signal);
        continue;
      } catch (error) {
        if (signal.aborted) return;
        this.#failed(error);
      }
      await delay(this.#options.heartbeatMs / 2, undefined, { signal }).catch(() => {});
    }
  }

  async #hello(signal: AbortSignal): Promise<void> {
    const { instance, heartbeatMs, downAfterMs, nowMs } = this.#options;
    const fresh = !this.#up;
    // The first answer tells that the peer is up: it is not held back. Of the time that is left before the peer counts as down, a
    // try leaves some for another, on another connection.
    const holdMs = fresh ? 0 : Math.min(heartbeatMs, downAfterMs / 2);
    const leftMs = fresh ? downAfterMs : Math.max(1, this.#heardMs + downAfterMs - nowMs());
    const timeoutMs = Math.min(leftMs, holdMs + (downAfterMs - holdMs) / 2);
    const json = { instance, session: this.#sessionId, fresh, seen: this.#seen, holdMs: Math.floor(holdMs) };
    const askedMs = nowMs();
    const reply = await this.#client.call("hello", { json }, HelloReply, { timeoutMs, signal });
    this.#heardMs = nowMs();
    this.#version = reply.version;
    if (!this.#up) {
      this.#up = true;
      this.#changed("it answers");
    }
    for (const { number, news } of reply.news) {
      if (number <= this.#seen) continue;
      this.#seen = number;
      for (const listener of this.#newsListeners) listener(news);
    }
    // A peer that answers at once for no reason is not asked all the time.
    const early = reply.news.length === 0 && nowMs() - askedMs < holdMs / 2;
    if (early) await delay(heartbeatMs / 2, undefined, { signal }).catch(() => {});
  }

  #failed(error: unknown): void {
    const message = error instanceof Error ? error.message : String(error);
    if (this.#error !== message && !this.#up) this.#log.warn("a peer cannot be reached", { peer: this.name, error });
    this.#error = message;
    const forgotten = error instanceof PeerError && error.code === "no-session";
    const silentMs = this.#options.nowMs() - this.#heardMs;
    if (!this.#up && !forgotten) return;
    if (!forgotten && silentMs < this.#options.downAfterMs) return;
    // What the peer has of the old session it ends by itself; nothing of it is counted on any more.
    this.#up = false;
    const old = this.#session;
    this.#session = new AbortController();
    this.#sessionId = newId();
    this.#seen = 0;
    const reason = forgotten ? `host ${this.name} has restarted or lost touch` : `host ${this.name} is down`;
    old.abort(new PeerError("unreachable", `${reason}: ${message}`));
    this.#changed(reason);
  }

  #changed(reason: string): void {
    this.#changedMs = this.#options.nowMs();
    this.#log.info(this.#up ? "a peer is up" : "a peer is down", { peer: this.name, reason });
    for (const listener of this.#changeListeners) listener(this.#up, reason);
  }
}

function newId(): string {
  return randomBytes(16).toString("hex");
}
