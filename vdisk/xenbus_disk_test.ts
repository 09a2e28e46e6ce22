import { deepEqual, equal, ok } from "node:assert/strict";
import type { Domid } from "../hypercall/ports.ts";
import type { Calls } from "../hypercall/thread_calls.ts";
import type { Xenstore } from "../hypercall/xenstore/mod.ts";
import { OP_READ, RSP_OKAY } from "./blkif/abi.ts";
import type { DiskService } from "./disk_service.ts";
import { SimFrontend } from "./testing/sim_guest.ts";
import { SimHost, XVDA } from "./testing/sim_host.ts";
import { backendPath, type DiskControl, diskNodes, type DiskStore, frontendPath, XenbusDisk } from "./xenbus_disk.ts";
import { type DiskEvent, type DiskMachine, NEW_DISK, stepDisk } from "./xenbus_machine.ts";

/** A xenstore that holds strings, and fires watches in later microtasks. */
class SimStore implements DiskStore {
  readonly nodes = new Map<string, string>();
  readonly #watches = new Set<{ path: string; onEvent: (path: string) => void }>();
  readonly log: string[] = [];

  read(path: string): Promise<string | undefined> {
    return Promise.resolve(this.nodes.get(path));
  }
  write(path: string, value: string): Promise<void> {
    this.nodes.set(path, value);
    if (path.endsWith("/state")) this.log.push(`${path.includes("backend") ? "back" : "front"} ${value}`);
    this.#fire(path);
    return Promise.resolve();
  }
  remove(path: string): Promise<void> {
    for (const name of [...this.nodes.keys()]) {
      if (name === path || name.startsWith(`${path}/`)) this.nodes.delete(name);
    }
    this.#fire(path);
    return Promise.resolve();
  }
  watch(path: string, onEvent: (path: string) => void): Promise<AsyncDisposable> {
    const watch = { path, onEvent };
    this.#watches.add(watch);
    queueMicrotask(() => onEvent(path));
    return Promise.resolve({
      [Symbol.asyncDispose]: () => {
        this.#watches.delete(watch);
        return Promise.resolve();
      },
    });
  }
  #fire(path: string): void {
    for (const watch of this.#watches) {
      if (path === watch.path || path.startsWith(`${watch.path}/`) || watch.path.startsWith(`${path}/`)) {
        queueMicrotask(() => watch.onEvent(path));
      }
    }
  }
}

const ID = { domid: 7 as Domid, devid: XVDA };
const FRONT = frontendPath(ID);
const BACK = backendPath(ID);

async function settle(): Promise<void> {
  for (let turn = 0; turn < 50; turn++) await Promise.resolve();
}

function connectWorld(write = true) {
  const host = new SimHost();
  const store = new SimStore();
  const front = new SimFrontend(host.machine, ID.domid);
  for (const { path, value } of diskNodes(ID, { name: "xvda", params: "/images/base.raw", write })) {
    store.nodes.set(path, value);
  }
  const faults: unknown[] = [];
  const control: DiskControl = {
    connect: async (id, address) => await Promise.resolve(host.service.connect(id, address)),
    disconnect: async (id) => await Promise.resolve(host.service.disconnect(id)),
  };
  const start = () => {
    const geometry = host.service.attach({ ...ID, image: { path: "/images/base.raw", format: "raw" }, write });
    return XenbusDisk.start({ store, control, id: ID, geometry, onFault: (error) => faults.push(error) });
  };
  const publish = async (keys: Record<string, string>) => {
    for (const [key, value] of Object.entries(keys)) store.nodes.set(`${FRONT}/${key}`, value);
    await store.write(`${FRONT}/state`, "3");
    await settle();
  };
  const ring = { "ring-ref": String(front.ringRef), "event-channel": String(front.port), "protocol": "x86_64-abi" };
  return { host, store, front, faults, start, publish, ring };
}

Deno.test("the handshake, I/O, and a frontend that closes and comes back", async () => {
  const { host, store, front, faults, start, publish, ring } = connectWorld(false);
  await using disk = await start();
  await settle();
  deepEqual(store.log, ["back 2"]);
  equal(store.nodes.get(`${BACK}/feature-flush-cache`), "1");
  equal(store.nodes.get(`${BACK}/feature-max-indirect-segments`), "256");
  await publish(ring);
  deepEqual(store.log, ["back 2", "front 3", "back 4"]);
  deepEqual(["sectors", "sector-size", "info"].map((key) => store.nodes.get(`${BACK}/${key}`)), ["16384", "512", "4"]);
  await store.write(`${FRONT}/state`, "4");
  front.request(OP_READ, 0n, SimFrontend.wholePages(0, 1));
  host.run(front);
  equal(front.responses()[0]?.status, RSP_OKAY);
  await store.write(`${FRONT}/state`, "5");
  await settle();
  await store.write(`${FRONT}/state`, "6");
  await settle();
  equal(store.nodes.get(`${BACK}/state`), "6");
  equal(host.machine.mapped, 0);
  await store.write(`${FRONT}/state`, "1");
  await settle();
  equal(store.nodes.get(`${BACK}/state`), "2");
  equal(disk.phase, "waiting");
  deepEqual(faults, []);
});

Deno.test("a resumed clone publishes its ring at once; a restarted agent finds it connected", async () => {
  const { host, store, front, start, publish, ring } = connectWorld();
  {
    await using disk = await start();
    // Both before the first event is handled.
    await publish(ring);
    equal(disk.phase, "connected");
    equal(store.nodes.get(`${BACK}/feature-discard`), "1");
    await store.write(`${FRONT}/state`, "4");
  }
  const id = front.request(OP_READ, 0n, SimFrontend.wholePages(0, 1));
  host.restart();
  store.log.length = 0;
  await using again = await start();
  await settle();
  equal(again.phase, "connected");
  deepEqual(store.log, ["back 4"]);
  host.run();
  deepEqual(front.responses().map((response) => response.id), [id]);
});

Deno.test("what a guest publishes is not trusted", async () => {
  for (
    const keys of [
      { "ring-ref": "no number" },
      { "ring-ref": "4294967296" },
      { "ring-ref": "-1" },
      { "event-channel": "0" },
      { "event-channel": "99999999999999999999" },
      { "protocol": "x86_32-abi" },
      { "ring-ref": "77" }, // not granted
    ]
  ) {
    const { store, faults, host, start, publish, ring } = connectWorld();
    await using disk = await start();
    await publish({ ...ring, ...keys });
    equal(disk.phase, "closing", JSON.stringify(keys));
    equal(store.nodes.get(`${BACK}/state`), "5");
    ok((store.nodes.get(`${BACK}/error`) ?? "").length > 0);
    equal(host.machine.mapped, 0);
    await store.write(`${FRONT}/state`, "x".repeat(3000));
    await settle();
    await store.write(`${FRONT}/state`, "6");
    await settle();
    equal(disk.phase, "closed");
    deepEqual(faults, []);
  }
});

Deno.test("a disk leaves when its guest has closed it, or is gone", async () => {
  for (const gone of [false, true]) {
    const { host, store, start, publish, ring } = connectWorld();
    await using disk = await start();
    await publish(ring);
    await disk.leave();
    equal(store.nodes.get(`${BACK}/state`), "5");
    if (gone) await store.remove(FRONT);
    else await store.write(`${FRONT}/state`, "6");
    await disk.finished;
    equal(store.nodes.get(`${BACK}/online`), "0");
    equal(store.nodes.get(`${BACK}/state`), "6");
    equal(host.machine.mapped, 0);
  }
});

Deno.test("no order of events connects twice, or leaves a ring behind", () => {
  const events: DiskEvent[] = [
    ...["1", "2", "3", "4", "5", "6", "junk", undefined].map((state) => ({
      kind: "frontend" as const,
      state,
      keys: { ringRef: "8", eventChannel: "5", protocol: undefined },
    })),
    { kind: "connected" },
    { kind: "connectFailed", reason: "no" },
    { kind: "leave" },
  ];
  // Every sequence of five.
  const visit = (machine: DiskMachine, connected: boolean, depth: number) => {
    for (const event of events) {
      const [next, effects] = stepDisk(machine, event);
      let holds = connected;
      for (const effect of effects) {
        if (effect.kind === "connect") {
          ok(!holds, "connects twice");
          holds = true;
        }
        if (effect.kind === "disconnect") holds = false;
        if (effect.kind === "finished") ok(next.leaving && !holds);
      }
      if (next.phase === "closed" || next.phase === "new" || next.phase === "waiting") {
        ok(!holds, `${next.phase} with a ring`);
      }
      if (depth > 1) visit(next, holds, depth - 1);
    }
  };
  visit(NEW_DISK, false, 5);
});

Deno.test("xenstore's client and the disk thread's calls fit the ports", () => {
  // Types alone: this compiles or it does not.
  const store = (real: Xenstore): DiskStore => real;
  const control = (real: Calls<DiskService>): DiskControl => real;
  equal(typeof store, typeof control);
});
