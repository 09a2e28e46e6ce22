/**
 * The fork engine as its callers see it: the guest service, the HTTP API, and through that the command line. Everything here is
 * plain data, so that it crosses a socket as JSON unchanged. `agent/fork/` implements it.
 *
 * A *ticket* is a reservation of clones of one domain. It is `ready` until its fork, `cloned` while clones live, then `ended`.
 * Its clones are numbered from 1; 0 is the parent. Times are milliseconds, memory is bytes unless a name says otherwise.
 */

/** Most clones that one ticket may ask for. */
export const MAX_CLONES = 1000;
/** Most bytes (UTF-8) that a clone may hand to its parent with its status. */
export const MAX_EXIT_DATA_BYTES = 2048;
/** Longest text that names a ticket, a domain or a clone. */
export const MAX_NAME_LENGTH = 128;

export type EngineErrorCode =
  /** No ticket of that name, or it was forgotten long after its end. */
  | "no-such-ticket"
  | "no-such-domain"
  /** The caller is a guest, and neither the ticket's parent nor entitled otherwise. */
  | "not-yours"
  /** The number of clones is not an integer of 1..{@link MAX_CLONES}. */
  | "bad-count"
  /** An argument cannot be understood; the message says which. */
  | "bad-request"
  /** Not enough memory on any host for one more shell. */
  | "no-memory"
  /** The parent did not suspend in time, or cannot; it runs on. */
  | "cannot-suspend"
  /** Another fork of this domain, or another step of this ticket, is under way. */
  | "busy"
  /** The ticket was used, or ended, or its parent is gone. */
  | "ended"
  /** A limit of the configuration: tickets per domain, clones per host, requests per second. */
  | "limit"
  /** `join` ran out of time; the clones live on. */
  | "timeout"
  /** The caller gave up. */
  | "aborted"
  /** This host or domain cannot do it: no HAP, passed-through devices, and so on. */
  | "unsupported"
  /** Anything else; the cause is in the agent's log. */
  | "failed";

/** A failure with a cause that callers can tell apart. Branch on `code`, never on the message. */
export class EngineError extends Error {
  readonly code: EngineErrorCode;

  /** `message` is one line for a person, such as `There is no ticket t-4f2a`. */
  constructor(code: EngineErrorCode, message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = "EngineError";
    this.code = code;
  }
}

export interface TicketRequest {
  /** Name or domid of the parent. */
  readonly domain: string | number;
  /** Clones wanted, 1..{@link MAX_CLONES}. Fewer may be granted, never none: that is `no-memory`. */
  readonly clones: number;
}

export type CloneState =
  /** Created and sized; never run. */
  | "shell"
  /** The fork is being put into it. */
  | "restoring"
  | "running"
  /** Ended by `exit`, with a status. */
  | "exited"
  /** Ended by `kill`, by the operator, or with its ticket. */
  | "killed"
  /** Crashed, powered off without a status, could not be started, or its host is gone; `reason` says which. */
  | "lost";

/** Milliseconds; a stage that has not ended is absent. */
export interface CloneTimes {
  /** Making the shell. */
  readonly shellMs?: number;
  /** Putting the descriptor into the shell. */
  readonly restoreMs?: number;
  /** From the start of the fork to the clone's unpause. */
  readonly startedMs?: number;
  /** From the start of the fork to the first sign of the clone's own code. */
  readonly firstRunMs?: number;
}

export interface CloneInfo {
  readonly ticket: string;
  /** 1..granted. */
  readonly id: number;
  readonly name: string;
  readonly uuid: string;
  /** Name of the host that it is on. */
  readonly host: string;
  /** Absent once it is gone. */
  readonly domid?: number;
  readonly state: CloneState;
  /** Why it was lost or killed. */
  readonly reason?: string;
  /** 0..255, once it exited. */
  readonly status?: number;
  /** What it handed over with its status; at most {@link MAX_EXIT_DATA_BYTES}. */
  readonly data?: string;
  readonly times: CloneTimes;
  /** Counters of its memory: `faults`, `pagesResident`, `pagesTotal`, ... */
  readonly memory?: Readonly<Record<string, number>>;
}

export type TicketState = "ready" | "cloned" | "ended";

export interface TicketInfo {
  readonly ticket: string;
  readonly parent: { readonly domid: number; readonly name: string };
  /** Clones granted, 1..requested. */
  readonly granted: number;
  readonly state: TicketState;
  readonly clones: readonly CloneInfo[];
  /** Its fork, once it has been. */
  readonly fork?: ForkSummary;
}

/** One fork: how long the parent stood still (`pauseMs`, of which the four stages are parts) and what came of it. */
export interface ForkReport {
  readonly ticket: string;
  readonly pauseMs: number;
  readonly suspendMs: number;
  readonly captureMs: number;
  readonly nominateMs: number;
  readonly resumeMs: number;
  readonly descriptorBytes: number;
  /** From the call to the last clone's unpause. */
  readonly cloneMs: number;
  /** Clones that could not be started are among them, as `lost`. */
  readonly clones: readonly CloneInfo[];
}

/** A fork without its clones. */
export type ForkSummary = Omit<ForkReport, "clones">;

/** What may be done on behalf of a guest is checked against `caller`; an operator's call has none. */
export interface CallOptions {
  /** The domid of the guest that asks. */
  readonly caller?: number;
}

export interface NodeOptions extends CallOptions {
  /**
   * Further xenstore nodes for each clone, written before it starts: path below the domain's own (`data/snowflock/answer`) to
   * value. The guest service answers the pending `sf clone` with it. Must not throw.
   */
  readonly nodes?: (clone: CloneInfo) => Readonly<Record<string, string>>;
}

export interface CloneOptions extends NodeOptions {
  /** Fetch the rest of the memory in the background, so that clones outlive the parent. Default: the configuration's. */
  readonly fill?: boolean;
}

export interface JoinOptions extends CallOptions {
  /** Default: wait for ever. At its end: EngineError `timeout`. */
  readonly timeoutMs?: number;
  /** Ends the wait, not the clones: EngineError `aborted`. */
  readonly signal?: AbortSignal;
}

/** Who a domain is. */
export interface Identity {
  /** 0: not a clone of any live or remembered ticket. */
  readonly id: number;
  /** The ticket that it is a clone of. */
  readonly ticket?: string;
  /** Name of the family: a parent and all its descendants. */
  readonly family: string;
}

/** A domain that the agent knows of, for `tree` and `list`. */
export interface DomainSummary {
  readonly domid: number;
  readonly name: string;
  /** Domid of the parent on this host, if it is a clone. */
  readonly parentDomid?: number;
  /** Name of the parent, if it is a clone. */
  readonly parent?: string;
  readonly identity: Identity;
}

export type EngineEvent =
  | { readonly type: "ticket"; readonly ticket: TicketInfo }
  | { readonly type: "clone"; readonly clone: CloneInfo }
  | { readonly type: "fork"; readonly report: ForkReport };

/** Every method rejects (or throws) {@link EngineError}. */
export interface Engine {
  /** Reserves clones and makes their shells. */
  requestTicket(request: TicketRequest, options?: CallOptions): Promise<TicketInfo>;
  /** Forks the ticket's parent; resolves when every clone runs or is lost. Once a ticket. */
  clone(ticket: string, options?: CloneOptions): Promise<ForkReport>;
  /** Waits until all clones have ended, ends the ticket, and gives them in the order of their ids. At once on an ended ticket. */
  join(ticket: string, options?: JoinOptions): Promise<readonly CloneInfo[]>;
  /** Ends the clones and the ticket. Succeeds on a ticket that has ended already. */
  kill(ticket: string, options?: CallOptions): Promise<void>;
  /**
   * sf_checkpoint_parent: suspends the domain for ever, as a template. The ticket that comes back names the template and has no
   * clones; {@link requestTicket} for the domain and {@link clone} make them, as often as wanted, each time with these `nodes`.
   */
  checkpoint(domain: string | number, options?: NodeOptions): Promise<TicketInfo>;
  /** A clone says that it is done: records the result, then ends the domain. `not-yours` if `domid` is no clone. */
  cloneExited(domid: number, status: number, data: string): Promise<void>;
  /** A domain says that its own code runs. Gives `firstRunMs` the first time a running clone says so; ignored otherwise. */
  cloneAwake(domid: number): void;

  /** Never throws: a domain that was never cloned is 0 in a family of its own name. */
  identity(domid: number): Identity;
  /** Tickets, newest first, ended ones among them while they are remembered. */
  list(): readonly TicketInfo[];
  /** A ticket by its name, or a clone by its name, uuid or domid (in decimal). */
  show(name: string): TicketInfo | CloneInfo | undefined;
  domains(): readonly DomainSummary[];
  /** Calls `listener` after each change, until the result is disposed of. A listener that throws is logged, no more. */
  on(listener: (event: EngineEvent) => void): Disposable;
}
