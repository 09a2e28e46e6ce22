/**
 * All disks of one thread: attached, connected to their guests' rings, frozen, forked. It never blocks but for the files, has no
 * clock, and is driven from outside: `onReadable` for each readable descriptor, then `run` until it says that nothing is left.
 */
import type { Domid, EventChannelPort, PinnedMemory, Poller, Port } from "../hypercall/ports.ts";
import { MAX_INDIRECT_SEGMENTS } from "./blkif/abi.ts";
import type { CopyCounts, CopyDevices } from "./blkif/grant_copy.ts";
import { DiskQueue, type QueueCounts } from "./blkif/queue.ts";
import { BackRing } from "./blkif/ring.ts";
import { DiskError } from "./errors.ts";
import type { ImageName } from "./image_paths.ts";
import type { ForkedPaths, ForkPaths, ImageRegistry, OpenDisk } from "./image_registry.ts";
import { BLOCK_BYTES, type BlockSource, SECTOR_BYTES } from "./ports.ts";
import type { RemoteLayer } from "./remote_layer.ts";

/** Disks of one service. More are refused. */
const MAX_DISKS = 1024;

export interface DiskId {
  readonly domid: Domid;
  /** The guest's device number, such as 51712 for xvda. */
  readonly devid: number;
}

export interface AttachDisk extends DiskId {
  readonly image: ImageName;
  readonly write: boolean;
}

export interface DiskGeometry {
  readonly sectors: number;
  readonly sectorBytes: number;
  readonly write: boolean;
}

/** What the front end published. */
export interface RingAddress {
  readonly ringRef: number;
  readonly eventChannel: Port;
}

export interface DiskStatistics {
  readonly layerPaths: readonly string[];
  readonly connected: boolean;
  readonly broken: string | undefined;
  readonly counts: QueueCounts | undefined;
  readonly copies: CopyCounts | undefined;
  readonly fetchedBlocks: number;
}

export interface DiskServiceOptions {
  readonly registry: ImageRegistry;
  readonly events: EventChannelPort;
  readonly devices: CopyDevices;
  readonly poller: Pick<Poller, "add" | "remove">;
  /** Gives the blocks of another host's chain. */
  readonly source?: (chainId: string) => BlockSource | undefined;
  /** A guest's request was refused, or a disk failed at it (then with the cause). At most some tens a batch: the caller limits what it logs. */
  readonly onRefused?: (disk: DiskId, reason: string, cause?: unknown) => void;
  /** Something failed that is no one request's: a ring that had to be given up, an image that could not be sealed. */
  readonly onFault?: (error: unknown) => void;
}

interface Connection {
  readonly port: Port;
  readonly page: PinnedMemory;
  readonly queue: DiskQueue;
}

interface Disk {
  readonly id: DiskId;
  readonly open: OpenDisk;
  connection: Connection | undefined;
  state: "running" | "freezing" | "frozen";
  freezing: PromiseWithResolvers<void> | undefined;
}

export class DiskService implements Disposable {
  readonly #options: DiskServiceOptions;
  readonly #disks = new Map<string, Disk>();
  readonly #byPort = new Map<Port, Disk>();
  /** Has something to do without an event. */
  readonly #ready = new Set<Disk>();
  #news = false;
  readonly #remotes = new Map<number, { readonly layer: RemoteLayer; users: number }>();

  constructor(options: DiskServiceOptions) {
    this.#options = options;
    if (options.devices.staging.bytes.byteLength < MAX_INDIRECT_SEGMENTS * BLOCK_BYTES) {
      throw new RangeError("the staging memory must hold the largest request");
    }
    options.poller.add(options.events.fd);
  }

  attach(disk: AttachDisk): DiskGeometry {
    const operation = `attach disk ${disk.devid} to domain ${disk.domid}`;
    if (this.#disks.has(keyOf(disk))) throw new DiskError(operation, "EEXIST", "it is attached");
    if (this.#disks.size >= MAX_DISKS) throw new DiskError(operation, "BUSY", `there are ${MAX_DISKS} disks`);
    const { source } = this.#options;
    const open = this.#options.registry.open(disk.image, { write: disk.write, ...(source && { source }) });
    const { domid, devid } = disk;
    this.#disks.set(keyOf(disk), {
      id: { domid, devid },
      open,
      connection: undefined,
      state: "running",
      freezing: undefined,
    });
    this.#useRemote(open.remote);
    return { sectors: open.chain.byteLength / SECTOR_BYTES, sectorBytes: SECTOR_BYTES, write: open.chain.writable };
  }

  /**
   * Serves the guest's ring. On a ring that a predecessor left, it goes on at the first unanswered request: what was in flight
   * is done again, which is harmless, since the guest has not been told that it was done.
   */
  connect(id: DiskId, address: RingAddress): void {
    const disk = this.#disk(id, "connect");
    if (disk.connection !== undefined) throw new DiskError(describe("connect", id), "BUSY", "it is connected");
    const { events, devices, onRefused } = this.#options;
    const page = devices.grants.map(id.domid, [address.ringRef], { write: true });
    let port: Port;
    try {
      port = events.bindInterdomain(id.domid, address.eventChannel);
    } catch (error) {
      page[Symbol.dispose]();
      throw error;
    }
    const queue = new DiskQueue({
      ring: new BackRing(page.bytes),
      domid: id.domid,
      chain: disk.open.chain,
      remote: disk.open.remote,
      devices,
      notify: () => events.notify(port),
      onReady: () => this.#ready.add(disk),
      ...(onRefused && { onRefused: (reason, cause) => onRefused(disk.id, reason, cause) }),
    });
    disk.connection = { port, page, queue };
    this.#byPort.set(port, disk);
    if (disk.state !== "running") queue.pause();
    this.#ready.add(disk);
    // The predecessor may have answered and died before it told the guest.
    events.notify(port);
  }

  /** Lets go of the ring. Requests in flight are forgotten: the guest has closed, or is gone. */
  disconnect(id: DiskId): void {
    const disk = this.#disk(id, "disconnect");
    const { connection } = disk;
    if (connection === undefined) return;
    disk.connection = undefined;
    this.#byPort.delete(connection.port);
    this.#ready.delete(disk);
    try {
      this.#options.events.unbind(connection.port);
    } finally {
      connection.page[Symbol.dispose]();
    }
    if (disk.state === "freezing") this.#settleFreeze(disk);
    if (disk.state === "running" && disk.open.chain.writable) disk.open.chain.flush();
  }

  /** Closes the disk; with `remove` its own overlay (the top layer) is deleted, for a clone that has ended. */
  detach(id: DiskId, options: { readonly remove?: boolean } = {}): void {
    const disk = this.#disk(id, "detach");
    const [top] = disk.open.layerPaths;
    const removable = options.remove === true && disk.open.chain.writable && disk.open.layerPaths.length > 1;
    try {
      this.disconnect(id);
    } finally {
      this.#disks.delete(keyOf(id));
      this.#dropRemote(disk.open.remote);
      if (disk.state === "freezing") {
        this.#finishFreeze(disk, new DiskError(describe("freeze", id), "NOT_FOUND", "it was detached"));
      }
      if (removable) disk.open.closeAndRemoveTop();
      else disk.open[Symbol.dispose]();
    }
    if (options.remove === true && !removable) {
      throw new DiskError(describe("remove", id), "INVALID", `${top} is no overlay of its own`);
    }
  }

  /**
   * Answers what is in flight, takes no more, and flushes; resolves when that is done, which waits for blocks of another host where
   * requests need them. To be asked for as soon as the guest has suspended, and before its memory is captured: until then
   * answers and read data are still written to its memory.
   */
  freeze(id: DiskId): Promise<void> {
    const disk = this.#disk(id, "freeze");
    if (disk.state !== "running") throw new DiskError(describe("freeze", id), "BUSY", `it is ${disk.state}`);
    const freezing = Promise.withResolvers<void>();
    disk.state = "freezing";
    disk.freezing = freezing;
    disk.connection?.queue.pause();
    this.#settleFreeze(disk);
    return freezing.promise;
  }

  /** Forks a frozen disk. The caller records the result durably, then thaws. */
  fork(id: DiskId, paths: ForkPaths): ForkedPaths {
    const disk = this.#disk(id, "fork");
    if (disk.state !== "frozen") throw new DiskError(describe("fork", id), "BUSY", `it is ${disk.state}, not frozen`);
    return disk.open.fork(paths);
  }

  /** Goes on; also ends a freeze that is not done yet, which then fails. */
  thaw(id: DiskId): void {
    const disk = this.#disk(id, "thaw");
    if (disk.state === "freezing") {
      this.#finishFreeze(disk, new DiskError(describe("freeze", id), "BUSY", "it was thawed"));
    }
    disk.state = "running";
    disk.connection?.queue.resume();
  }

  statistics(id: DiskId): DiskStatistics {
    const { open, connection } = this.#disk(id, "look at");
    return {
      layerPaths: open.layerPaths,
      connected: connection !== undefined,
      broken: connection?.queue.broken,
      counts: connection && { ...connection.queue.counts },
      copies: connection && { ...connection.queue.copyCounts },
      fetchedBlocks: open.remote?.fetchedBlocks ?? 0,
    };
  }

  list(): DiskId[] {
    return [...this.#disks.values()].map((disk) => disk.id);
  }

  onReadable(fd: number): void {
    if (fd === this.#options.events.fd) {
      for (const port of this.#options.events.pending()) {
        // Unmasked before the ring is looked at, so that a request after the look raises the event again.
        this.#options.events.unmask(port);
        const disk = this.#byPort.get(port);
        if (disk !== undefined) this.#ready.add(disk);
      }
      return;
    }
    this.#remotes.get(fd)?.layer.receive();
  }

  /** One batch of each disk that has something to do. Whether there is more. */
  run(): boolean {
    for (const disk of [...this.#ready]) {
      if (!this.#process(disk)) this.#ready.delete(disk);
      if (disk.state === "freezing") this.#settleFreeze(disk);
    }
    return this.#ready.size > 0;
  }

  /** Whether a promise was settled since the last look: its listener needs a turn of the event loop. */
  takeNews(): boolean {
    const news = this.#news;
    this.#news = false;
    return news;
  }

  /** What can wait: one frozen image's reference counts. Whether there is more. */
  housekeep(): boolean {
    try {
      return this.#options.registry.sealOne();
    } catch (error) {
      // The image stays as a crash would leave it: whole, and dirty.
      this.#options.onFault?.(error);
      return true;
    }
  }

  [Symbol.dispose](): void {
    this.#options.poller.remove(this.#options.events.fd);
    for (const { id } of [...this.#disks.values()]) this.detach(id);
  }

  /** Whether there is more. One disk's failure is not the others'. */
  #process(disk: Disk): boolean {
    const queue = disk.connection?.queue;
    if (queue === undefined) return false;
    try {
      return queue.process();
    } catch (error) {
      queue.giveUp(error);
      this.#options.onFault?.(error);
      return false;
    }
  }

  #settleFreeze(disk: Disk): void {
    if (disk.connection !== undefined && !disk.connection.queue.idle) return;
    let failure: unknown;
    try {
      if (disk.open.chain.writable) disk.open.chain.flush();
    } catch (error) {
      failure = error;
    }
    if (failure === undefined) disk.state = "frozen";
    this.#finishFreeze(disk, failure);
  }

  #finishFreeze(disk: Disk, error: unknown): void {
    const { freezing } = disk;
    disk.freezing = undefined;
    this.#news = true;
    if (error === undefined) {
      freezing?.resolve();
      return;
    }
    disk.state = "running";
    disk.connection?.queue.resume();
    freezing?.reject(error);
  }

  #useRemote(layer: RemoteLayer | undefined): void {
    if (layer === undefined) return;
    const held = this.#remotes.get(layer.fd);
    if (held !== undefined) {
      held.users++;
      return;
    }
    this.#remotes.set(layer.fd, { layer, users: 1 });
    this.#options.poller.add(layer.fd);
  }

  #dropRemote(layer: RemoteLayer | undefined): void {
    const held = layer && this.#remotes.get(layer.fd);
    if (layer === undefined || held === undefined || --held.users > 0) return;
    this.#remotes.delete(layer.fd);
    this.#options.poller.remove(layer.fd);
  }

  #disk(id: DiskId, verb: string): Disk {
    const disk = this.#disks.get(keyOf(id));
    if (disk === undefined) throw new DiskError(describe(verb, id), "NOT_FOUND", "it is not attached");
    return disk;
  }
}

function keyOf({ domid, devid }: DiskId): string {
  return `${domid}/${devid}`;
}

function describe(verb: string, { domid, devid }: DiskId): string {
  return `${verb} disk ${devid} of domain ${domid}`;
}
