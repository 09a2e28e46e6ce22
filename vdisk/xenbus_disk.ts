/** A disk in xenstore: the nodes that make it, and the driver of its {@link DiskMachine}. */
import { MAX_INDIRECT_SEGMENTS } from "./blkif/abi.ts";
import type { DiskGeometry, DiskId, RingAddress } from "./disk_service.ts";
import { BLOCK_BYTES } from "./ports.ts";
import {
  type DiskEffect,
  type DiskEvent,
  type DiskMachine,
  NEW_DISK,
  stepDisk,
  XenbusState,
} from "./xenbus_machine.ts";

/** The kernel's blkback takes "vbd"; nobody but us takes this. */
export const BACKEND_TYPE = "sfdisk";
/** VDISK_READONLY (public/io/blkif.h). */
const INFO_READONLY = 4;

/** What is needed of xenstore. Requests of one connection are performed in the order in which they were made. */
export interface DiskStore {
  /** The value, or undefined where there is no such node. */
  read(path: string): Promise<string | undefined>;
  write(path: string, value: string): Promise<void>;
  /** Removes a node and all below it; nothing happens where there is none. */
  remove(path: string): Promise<void>;
  /** Calls `onEvent` once at once and then after each change at or below `path`. */
  watch(path: string, onEvent: (path: string) => void): Promise<AsyncDisposable>;
}

/** The part of a {@link DiskService} that the handshake needs, from whichever thread. */
export interface DiskControl {
  connect(id: DiskId, address: RingAddress): Promise<void>;
  disconnect(id: DiskId): Promise<void>;
}

export function frontendPath({ domid, devid }: DiskId): string {
  return `/local/domain/${domid}/device/vbd/${devid}`;
}

export function backendPath({ domid, devid }: DiskId): string {
  return `/local/domain/0/backend/${BACKEND_TYPE}/${domid}/${devid}`;
}

export interface DiskNode {
  readonly path: string;
  readonly value: string;
  /** The first names the owner and what everybody else may do. */
  readonly permissions: readonly { readonly domid: number; readonly access: "none" | "read" | "write" | "both" }[];
}

/**
 * The nodes of a new disk, parents before what is below them, for whoever builds the domain's tree. `name` is for people (xvda);
 * `params` says which image, for people and for a restarted agent.
 */
export function diskNodes(
  id: DiskId,
  disk: { readonly name: string; readonly params: string; readonly write: boolean },
): DiskNode[] {
  const backend = backendPath(id);
  const frontend = frontendPath(id);
  const nodes = (base: string, owner: number, reader: number, values: Record<string, string>): DiskNode[] => {
    const permissions = [{ domid: owner, access: "none" }, { domid: reader, access: "read" }] as const;
    return [
      { path: base, value: "", permissions },
      ...Object.entries(values).map(([key, value]) => ({ path: `${base}/${key}`, value, permissions })),
    ];
  };
  return [
    ...nodes(backend, 0, id.domid, {
      "frontend": frontend,
      "frontend-id": String(id.domid),
      "online": "1",
      "removable": "0",
      "bootable": "1",
      "dev": disk.name,
      "type": BACKEND_TYPE,
      "mode": disk.write ? "w" : "r",
      "device-type": "disk",
      "params": disk.params,
      "state": String(XenbusState.Initialising),
    }),
    ...nodes(frontend, id.domid, 0, {
      "backend": backend,
      "backend-id": "0",
      "virtual-device": String(id.devid),
      "device-type": "disk",
      "state": String(XenbusState.Initialising),
    }),
  ];
}

const FEATURES: Readonly<Record<string, string>> = {
  "feature-flush-cache": "1",
  "feature-barrier": "0",
  "feature-persistent": "0",
  "feature-max-indirect-segments": String(MAX_INDIRECT_SEGMENTS),
  "feature-discard": "1",
  "discard-granularity": String(BLOCK_BYTES),
  "discard-alignment": "0",
  "discard-secure": "0",
};

export interface XenbusDiskOptions {
  readonly store: DiskStore;
  readonly control: DiskControl;
  readonly id: DiskId;
  readonly geometry: DiskGeometry;
  /** A failure of xenstore or of the disk thread that no caller waits for. */
  readonly onFault: (error: unknown) => void;
}

/** Serves one attached disk's xenbus handshake until it is finished or disposed of. */
export class XenbusDisk implements AsyncDisposable {
  readonly #options: XenbusDiskOptions;
  readonly #backend: string;
  readonly #frontend: string;
  readonly #finished = Promise.withResolvers<void>();
  #machine: DiskMachine = NEW_DISK;
  #watch: AsyncDisposable | undefined;
  /** Events are handled one after the other. */
  #tail: Promise<void> = Promise.resolve();
  /** A change that came while one like it already waits needs no further look. */
  #lookWaits = false;
  #disposed = false;

  private constructor(options: XenbusDiskOptions) {
    this.#options = options;
    this.#backend = backendPath(options.id);
    this.#frontend = frontendPath(options.id);
  }

  /** Begins to watch the front end. The nodes are there already. */
  static async start(options: XenbusDiskOptions): Promise<XenbusDisk> {
    const disk = new XenbusDisk(options);
    disk.#watch = await options.store.watch(`${disk.#frontend}/state`, () => disk.#look());
    return disk;
  }

  get phase(): DiskMachine["phase"] {
    return this.#machine.phase;
  }

  /** Resolves when a disk that was asked to leave is closed. */
  get finished(): Promise<void> {
    return this.#finished.promise;
  }

  /** Asks the front end to close. A guest that does not answer is not waited for: the caller sets a limit, then disposes. */
  async leave(): Promise<void> {
    await this.#options.store.write(`${this.#backend}/online`, "0");
    await this.#enqueue(() => this.#step({ kind: "leave" }));
  }

  /** Stops watching. Nodes, ring and image are left as they are. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#disposed = true;
    await this.#watch?.[Symbol.asyncDispose]();
    await this.#tail;
  }

  #look(): void {
    if (this.#lookWaits || this.#disposed) return;
    this.#lookWaits = true;
    this.#enqueue(async () => {
      this.#lookWaits = false;
      await this.#step(await this.#readFrontend());
    }).catch(this.#options.onFault);
  }

  #enqueue(task: () => Promise<void>): Promise<void> {
    const done = this.#tail.then(() => this.#disposed ? undefined : task());
    this.#tail = done.catch(() => {});
    return done;
  }

  async #readFrontend(): Promise<DiskEvent> {
    const { store } = this.#options;
    const [state, ringRef, eventChannel, protocol] = await Promise.all(
      ["state", "ring-ref", "event-channel", "protocol"].map((key) => store.read(`${this.#frontend}/${key}`)),
    );
    return { kind: "frontend", state, keys: { ringRef, eventChannel, protocol } };
  }

  async #step(event: DiskEvent): Promise<void> {
    const [machine, effects] = stepDisk(this.#machine, event);
    this.#machine = machine;
    for (const effect of effects) await this.#perform(effect);
  }

  async #perform(effect: DiskEffect): Promise<void> {
    const { control, id, geometry } = this.#options;
    switch (effect.kind) {
      case "offer":
        await this.#writeAll({ ...FEATURES, state: String(XenbusState.InitWait) });
        break;
      case "connect": {
        let failure: unknown;
        try {
          await control.connect(id, effect.address);
        } catch (error) {
          failure = error;
        }
        // What the guest wrote may be nonsense: that is its disk's failure, shown in its `error` node.
        const reason = failure instanceof Error ? failure.message : String(failure);
        await this.#step(failure === undefined ? { kind: "connected" } : { kind: "connectFailed", reason });
        break;
      }
      case "publish":
        await this.#writeAll({
          "sectors": String(geometry.sectors),
          "sector-size": String(geometry.sectorBytes),
          "physical-sector-size": String(BLOCK_BYTES),
          "info": String(geometry.write ? 0 : INFO_READONLY),
          "state": String(XenbusState.Connected),
        });
        break;
      case "disconnect":
        await control.disconnect(id);
        break;
      case "show":
        await this.#writeAll({ state: String(effect.state) });
        break;
      case "complain":
        await this.#writeAll({ error: effect.reason.slice(0, 200) });
        break;
      case "finished":
        this.#finished.resolve();
        break;
    }
  }

  /** No transaction: the front end looks at the rest only after the state, which is written last. */
  async #writeAll(values: Readonly<Record<string, string>>): Promise<void> {
    await Promise.all(
      Object.entries(values).map(([key, value]) => this.#options.store.write(`${this.#backend}/${key}`, value)),
    );
  }
}
