/** A disk service with its machine and files, all simulated. For tests. */
import type { Domid, Poller } from "../../hypercall/ports.ts";
import { DiskService, type DiskServiceOptions } from "../disk_service.ts";
import { ImagePaths } from "../image_paths.ts";
import { ImageRegistry } from "../image_registry.ts";
import { CrashFiles } from "./crash_files.ts";
import { SimEvents, SimFrontend, SimMachine } from "./sim_guest.ts";

export const XVDA = 51712;

export class SimHost {
  readonly files: CrashFiles;
  readonly machine: SimMachine;
  readonly paths: ImagePaths;
  readonly refusals: string[] = [];
  readonly faults: unknown[] = [];
  readonly polled = new Set<number>();
  registry: ImageRegistry;
  events: SimEvents;
  service: DiskService;

  constructor(
    readonly options: Partial<Pick<DiskServiceOptions, "source">> & Pick<DiskServiceOptions["devices"], "avoidance"> =
      {},
    files = new CrashFiles(),
    machine = new SimMachine(),
  ) {
    this.files = files;
    this.machine = machine;
    if (files.paths().length === 0) files.put("/images/base.raw", new Uint8Array(8 * 1024 * 1024));
    this.paths = new ImagePaths(files, ["/images"]);
    this.registry = new ImageRegistry(this.paths);
    this.events = new SimEvents();
    this.service = this.#start();
  }

  #start(): DiskService {
    const { source, avoidance } = this.options;
    const poller: Pick<Poller, "add" | "remove"> = {
      add: (fd) => void this.polled.add(fd),
      remove: (fd) => void this.polled.delete(fd),
    };
    return new DiskService({
      registry: this.registry,
      events: this.events,
      devices: { grants: this.machine, staging: this.machine.staging, ...(avoidance && { avoidance }) },
      poller,
      ...(source && { source }),
      onRefused: (_, reason) => this.refusals.push(reason),
      onFault: (error) => this.faults.push(error),
    });
  }

  /** The process dies without a word, the files stay as programs see them, and another begins. */
  restart(): void {
    const contents = this.files.paths().map((path) => [path, this.files.get(path)] as const);
    this.files.crash(() => 0.99);
    for (const [path, bytes] of contents) this.files.put(path, bytes ?? new Uint8Array());
    this.registry = new ImageRegistry(this.paths);
    this.events = new SimEvents();
    this.service = this.#start();
  }

  /** A guest whose disk is attached and connected. */
  guest(domid: number, path: string, format: "raw" | "qcow2", write = true): SimFrontend {
    const front = new SimFrontend(this.machine, domid as Domid);
    this.service.attach({ domid: front.domid, devid: XVDA, image: { path, format }, write });
    this.service.connect({ domid: front.domid, devid: XVDA }, { ringRef: front.ringRef, eventChannel: front.port });
    return front;
  }

  /** Lets the service do all that it can, after an event from the guest. */
  run(front?: SimFrontend): void {
    if (front !== undefined) this.events.fire(front.domid, front.port);
    for (let rounds = 0; rounds < 100_000; rounds++) {
      if (this.events.readable) this.service.onReadable(this.events.fd);
      if (!this.service.run() && !this.events.readable) return;
    }
    throw new Error("the service never rests");
  }
}
