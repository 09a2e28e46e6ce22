import type { FamilyChannel } from "../memory/exchange.ts";
import type { Descriptor, GuestShape } from "./descriptor.ts";
import type { GuestNodes } from "./start.ts";

/** A clone as its ticket numbers it. */
export interface CloneName {
  readonly id: number;
  readonly name: string;
  readonly uuid: string;
}

export interface PrepareRequest {
  readonly ticket: string;
  readonly family: string;
  readonly clones: readonly CloneName[];
  readonly shape: GuestShape;
}

/** A shell that was made, or why it was not. */
export interface Prepared {
  readonly id: number;
  readonly domid?: number;
  readonly shellMs?: number;
  readonly error?: string;
}

/** How another host gets the pages of a snapshot. */
export interface PageChannel extends FamilyChannel {
  /** `10.0.0.1:7078`, where the snapshot's host serves them. */
  readonly server: string;
}

export interface StartRequest {
  readonly ticket: string;
  readonly descriptor: Descriptor;
  /** Nodes for each clone, by its id. */
  readonly nodes: ReadonlyMap<number, GuestNodes>;
  /** For hosts other than the snapshot's. */
  readonly channel?: PageChannel;
  /** Bring the rest of the memory in, in the background. Default: the configuration's. */
  readonly fill?: boolean;
}

/** A clone that was started, or why it was not. */
export interface Started {
  readonly id: number;
  readonly restoreMs?: number;
  readonly error?: string;
}

/** A clone gave a first sign of life, needs no more of its parent's memory, said that it is done, or came to its end without being told to. */
export type CloneNews =
  | { readonly kind: "running"; readonly ticket: string; readonly id: number }
  | { readonly kind: "whole"; readonly ticket: string; readonly id: number }
  | {
    readonly kind: "exited";
    readonly ticket: string;
    readonly id: number;
    readonly status: number;
    readonly data: string;
    readonly memory: Readonly<Record<string, number>>;
  }
  | { readonly kind: "ended"; readonly ticket: string; readonly id: number; readonly reason: string };

/** A host that clones can be on: this one, or a peer. */
export interface CloneHost {
  readonly name: string;
  /** Clones of this shape that there is memory for, at most `wanted`. */
  capacity(shape: GuestShape, wanted: number): Promise<number>;
  /** Makes shells; one that cannot be made leaves nothing. */
  prepare(request: PrepareRequest): Promise<Prepared[]>;
  /** Starts every shell of the ticket that is named; one that cannot be started is gone afterwards. */
  start(request: StartRequest): Promise<Started[]>;
  /** Ends clones, or shells, and removes what they left. Those that are gone already are no error. */
  end(ticket: string, ids: readonly number[]): Promise<void>;
  /** Counters of the memory of a ticket's clones, by id. */
  memory(ticket: string): Promise<ReadonlyMap<number, Readonly<Record<string, number>>>>;
  onNews(listener: (news: CloneNews) => void): void;
}
