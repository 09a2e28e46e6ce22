/**
 * The back end's side of xenbus for one disk: which state it shows, and what it does, as the front end's state changes. After
 * Linux' blkback (drivers/block/xen-blkback/xenbus.c, frontend_changed). Pure: a driver performs the effects.
 */
import type { Port } from "../hypercall/ports.ts";
import type { RingAddress } from "./disk_service.ts";

/** enum xenbus_state (public/io/xenbus.h). */
export const XenbusState = {
  Unknown: 0,
  Initialising: 1,
  InitWait: 2,
  Initialised: 3,
  Connected: 4,
  Closing: 5,
  Closed: 6,
} as const;
export type XenbusState = (typeof XenbusState)[keyof typeof XenbusState];

export type DiskPhase = "new" | "waiting" | "connecting" | "connected" | "closing" | "closed";

export interface DiskMachine {
  readonly phase: DiskPhase;
  /** The operator wants the disk gone: once closed it is not offered again. */
  readonly leaving: boolean;
}

export type DiskEvent =
  /** The front end's directory, as read at one moment; values are the guest's, and not to be trusted. */
  | { readonly kind: "frontend"; readonly state: string | undefined; readonly keys: FrontendKeys }
  | { readonly kind: "connected" }
  | { readonly kind: "connectFailed"; readonly reason: string }
  /** The operator takes the disk away. */
  | { readonly kind: "leave" };

export interface FrontendKeys {
  readonly ringRef: string | undefined;
  readonly eventChannel: string | undefined;
  readonly protocol: string | undefined;
}

export type DiskEffect =
  /** Writes the features, then state InitWait. */
  | { readonly kind: "offer" }
  | { readonly kind: "connect"; readonly address: RingAddress }
  /** Writes sectors, sector size and info, then state Connected. */
  | { readonly kind: "publish" }
  | { readonly kind: "disconnect" }
  | { readonly kind: "show"; readonly state: XenbusState }
  /** Writes the reason into the back end's `error` node. */
  | { readonly kind: "complain"; readonly reason: string }
  /** All is over: nodes may be removed and the image closed. */
  | { readonly kind: "finished" };

export const NEW_DISK: DiskMachine = { phase: "new", leaving: false };

type Step = readonly [DiskMachine, readonly DiskEffect[]];

export function stepDisk(machine: DiskMachine, event: DiskEvent): Step {
  switch (event.kind) {
    case "frontend":
      return onFrontend(machine, event.state, event.keys);
    case "connected":
      return machine.phase === "connecting"
        ? [{ ...machine, phase: "connected" }, [{ kind: "publish" }]]
        : [machine, []];
    case "connectFailed":
      return machine.phase === "connecting"
        ? close(machine, [{ kind: "complain", reason: event.reason }])
        : [machine, []];
    case "leave": {
      const leaving = { ...machine, leaving: true };
      if (machine.phase === "closed") return [leaving, machine.leaving ? [] : [{ kind: "finished" }]];
      if (machine.phase === "new" || machine.phase === "waiting") return finish(leaving, []);
      // The front end answers Closing with Closed when its last user is done.
      return [{ ...leaving, phase: "closing" }, [{ kind: "show", state: XenbusState.Closing }]];
    }
  }
}

function onFrontend(machine: DiskMachine, state: string | undefined, keys: FrontendKeys): Step {
  if (state === undefined) {
    // The front end's directory is gone: the guest is destroyed, or the device taken from it.
    return machine.phase === "closed" ? [machine, []] : finish(machine, letGo(machine));
  }
  switch (state) {
    case "1":
      if (machine.phase !== "new" && (machine.phase !== "closed" || machine.leaving)) return [machine, []];
      return [{ ...machine, phase: "waiting" }, [{ kind: "offer" }]];
    case "3":
    case "4": {
      // A guest that resumes elsewhere publishes its ring without waiting for InitWait; a front end at 4 that we do not know
      // was connected to our predecessor.
      if (machine.phase !== "new" && machine.phase !== "waiting") return [machine, []];
      const address = parseAddress(keys);
      if (typeof address === "string") return close(machine, [{ kind: "complain", reason: address }]);
      const offer: DiskEffect[] = machine.phase === "new" && state === "3" ? [{ kind: "offer" }] : [];
      return [{ ...machine, phase: "connecting" }, [...offer, { kind: "connect", address }]];
    }
    case "5":
      if (machine.phase === "closing" || machine.phase === "closed") return [machine, []];
      return [{ ...machine, phase: "closing" }, [{ kind: "show", state: XenbusState.Closing }]];
    case "6":
      return machine.phase === "closed" ? [machine, []] : finish(machine, letGo(machine));
    default:
      return [machine, []];
  }
}

/** No further use of this front end, until it starts anew. */
function close(machine: DiskMachine, effects: readonly DiskEffect[]): Step {
  return [{ ...machine, phase: "closing" }, [...effects, { kind: "show", state: XenbusState.Closing }]];
}

function finish(machine: DiskMachine, effects: readonly DiskEffect[]): Step {
  const end: DiskEffect[] = machine.leaving ? [{ kind: "finished" }] : [];
  return [{ ...machine, phase: "closed" }, [...effects, { kind: "show", state: XenbusState.Closed }, ...end]];
}

function letGo(machine: DiskMachine): DiskEffect[] {
  return machine.phase === "new" || machine.phase === "waiting" ? [] : [{ kind: "disconnect" }];
}

/** The address, or what is wrong with it. */
function parseAddress(keys: FrontendKeys): RingAddress | string {
  const { ringRef, eventChannel, protocol } = keys;
  // Linux of 64 bits writes "x86_64-abi"; a front end without the key means the layout of its own architecture.
  if (protocol !== undefined && protocol !== "x86_64-abi") return `protocol ${JSON.stringify(protocol.slice(0, 40))}`;
  const grant = parseNumber(ringRef, 2 ** 32 - 1);
  const port = parseNumber(eventChannel, 2 ** 31 - 1);
  if (grant === undefined) return "ring-ref is no grant reference";
  if (port === undefined || port === 0) return "event-channel is no port";
  return { ringRef: grant, eventChannel: port as Port };
}

function parseNumber(text: string | undefined, maximum: number): number | undefined {
  if (text === undefined || !/^\d{1,10}$/.test(text)) return undefined;
  const value = Number(text);
  return value <= maximum ? value : undefined;
}
