/** A peer as a host that clones can be on. */
import { setTimeout as delay } from "node:timers/promises";
import { getLogger } from "@logtape/logtape";
import type { CloneHost, CloneNews, Prepared, PrepareRequest, Started, StartRequest } from "../fork/clone_host.ts";
import { type Descriptor, encodeDescriptor, type GuestShape, shapeOnly } from "../fork/descriptor.ts";
import type { PeerLink } from "./link.ts";
import * as wire from "./wire.ts";

/** How long a peer may take, milliseconds. Calls end earlier where the peer goes down. */
export interface CallTimeouts {
  readonly capacity: number;
  readonly prepare: number;
  readonly start: number;
  readonly end: number;
  readonly memory: number;
}

export const DEFAULT_TIMEOUTS: CallTimeouts = {
  capacity: 5_000,
  prepare: 180_000,
  start: 120_000,
  end: 60_000,
  memory: 5_000,
};
/** Tries to end clones of a call whose outcome is not known, while the session lasts. */
const END_TRIES = 20;

/** Family of a descriptor that only asks for room. */
const NO_FAMILY = "0".repeat(32);

export class RemoteHost implements CloneHost {
  readonly name: string;
  readonly #link: PeerLink;
  readonly #timeouts: CallTimeouts;
  readonly #fill: boolean;
  /** Clones there that live, as far as this host knows, by ticket. */
  readonly #clones = new Map<string, Set<number>>();
  readonly #listeners: ((news: CloneNews) => void)[] = [];
  readonly #log = getLogger(["snowflock", "peers"]);

  /** `fill`: what a fork that does not say wants. */
  constructor(link: PeerLink, fill: boolean, timeouts: CallTimeouts = DEFAULT_TIMEOUTS) {
    this.name = link.name;
    this.#link = link;
    this.#fill = fill;
    this.#timeouts = timeouts;
    link.onNews((news) => this.#onNews(news));
    link.onChange((up, reason) => {
      if (!up) this.#allGone(reason);
    });
  }

  async capacity(shape: GuestShape, wanted: number): Promise<number> {
    const message = { json: { wanted }, attachment: encodeOnce(shapeOnly(shape, NO_FAMILY)) };
    const { room } = await this.#link.call("capacity", message, wire.CapacityReply, this.#timeouts.capacity);
    return Math.min(room, wanted);
  }

  async prepare({ ticket, family, clones, shape }: PrepareRequest): Promise<Prepared[]> {
    const ids = clones.map(({ id }) => id);
    const message = { json: { ticket, family, clones }, attachment: encodeOnce(shapeOnly(shape, family)) };
    const { prepared } = await this.#certain(
      ticket,
      ids,
      () => this.#link.call("prepare", message, wire.PrepareReply, this.#timeouts.prepare),
    );
    const mine = prepared.filter(({ id }) => ids.includes(id));
    const made = mine.flatMap(({ id, domid }) => domid === undefined ? [] : [id]);
    if (made.length > 0) this.#clones.set(ticket, new Set([...this.#clones.get(ticket) ?? [], ...made]));
    return mine.map(withoutUndefined);
  }

  async start({ ticket, descriptor, nodes, channel, fill }: StartRequest): Promise<Started[]> {
    if (channel === undefined) throw new Error(`Host ${this.name} cannot get the snapshot's pages`);
    const ids = [...nodes.keys()];
    const message = {
      json: { ticket, nodes: [...nodes], channel, fill: fill ?? this.#fill },
      attachment: encodeOnce(descriptor),
    };
    const { started } = await this.#certain(
      ticket,
      ids,
      () => this.#link.call("start", message, wire.StartReply, this.#timeouts.start),
    );
    for (const { id, error } of started) if (error !== undefined) this.#forget(ticket, id);
    return started.filter(({ id }) => ids.includes(id)).map(withoutUndefined);
  }

  async end(ticket: string, ids: readonly number[]): Promise<void> {
    const alive = this.#clones.get(ticket);
    if (alive === undefined) return;
    for (const id of ids) this.#forget(ticket, id);
    await this.#certain(
      ticket,
      ids,
      () => this.#link.call("end", { json: { ticket, ids } }, wire.EndReply, this.#timeouts.end),
    );
  }

  async memory(ticket: string): Promise<ReadonlyMap<number, Readonly<Record<string, number>>>> {
    const { clones } = await this.#link.call("memory", { json: { ticket } }, wire.MemoryReply, this.#timeouts.memory);
    return new Map(clones);
  }

  onNews(listener: (news: CloneNews) => void): void {
    this.#listeners.push(listener);
  }

  /** Makes a call. Where its outcome is not known, the clones are ended: in the background, as long as the session lasts. */
  async #certain<T>(ticket: string, ids: readonly number[], call: () => Promise<T>): Promise<T> {
    const session = this.#link.sessionId;
    try {
      return await call();
    } catch (error) {
      for (const id of ids) this.#forget(ticket, id);
      if (this.#link.sessionId === session && this.#link.up) void this.#abandon(session, ticket, ids);
      throw error;
    }
  }

  async #abandon(session: string, ticket: string, ids: readonly number[]): Promise<void> {
    for (let tries = 0; tries < END_TRIES; tries++) {
      // The peer ends what belongs to a session that is over.
      if (this.#link.sessionId !== session || !this.#link.up) return;
      try {
        await this.#link.call("end", { json: { ticket, ids } }, wire.EndReply, this.#timeouts.end);
        return;
      } catch (error) {
        this.#log.warn("clones on a peer could not be ended yet", { peer: this.name, ticket, error });
        await delay(1000, undefined, { ref: false });
      }
    }
    this.#log.error("clones on a peer could not be ended", { peer: this.name, ticket });
  }

  #onNews(news: CloneNews): void {
    // News of what this host has not asked for, or has been told the end of, is no news.
    if (this.#clones.get(news.ticket)?.has(news.id) !== true) return;
    if (news.kind === "exited" || news.kind === "ended") this.#forget(news.ticket, news.id);
    this.#tell(news);
  }

  #allGone(reason: string): void {
    const gone = [...this.#clones].flatMap(([ticket, ids]) => [...ids].map((id) => ({ ticket, id })));
    this.#clones.clear();
    for (const { ticket, id } of gone) this.#tell({ kind: "ended", ticket, id, reason });
  }

  #forget(ticket: string, id: number): void {
    const ids = this.#clones.get(ticket);
    ids?.delete(id);
    if (ids?.size === 0) this.#clones.delete(ticket);
  }

  #tell(news: CloneNews): void {
    for (const listener of this.#listeners) listener(news);
  }
}

/** The same bytes go to every host. */
const encoded = new WeakMap<Descriptor, Uint8Array>();

function encodeOnce(descriptor: Descriptor): Uint8Array {
  const known = encoded.get(descriptor);
  if (known !== undefined) return known;
  const bytes = encodeDescriptor(descriptor);
  encoded.set(descriptor, bytes);
  return bytes;
}

type Defined<T> = { [K in keyof T]: Exclude<T[K], undefined> };

/** Members that are absent in JSON, and optional here, without `undefined` in them. */
function withoutUndefined<T extends object>(value: T): Defined<T> {
  return Object.fromEntries(Object.entries(value).filter(([, each]) => each !== undefined)) as Defined<T>;
}
