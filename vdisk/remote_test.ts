import { deepEqual, equal, ok, throws } from "node:assert/strict";
import { OP_READ, OP_WRITE, RSP_ERROR, RSP_OKAY } from "./blkif/abi.ts";
import { FrozenBlocks } from "./frozen_blocks.ts";
import { ImageRegistry } from "./image_registry.ts";
import type { AvoidancePort, BlockArrival, BlockSource, PageFill } from "./ports.ts";
import { SimFrontend } from "./testing/sim_guest.ts";
import { SimHost, XVDA } from "./testing/sim_host.ts";

const FD = 55;
const BYTES = 8 * 1024 * 1024;

/** The frozen chain of another host, whose answers wait until the test lets them go. */
class SimSource implements BlockSource {
  readonly fd = FD;
  readonly requested: number[] = [];
  arrivals: BlockArrival[] = [];
  disposed = false;

  request(blocks: readonly number[]): void {
    this.requested.push(...blocks);
  }
  receive(): readonly BlockArrival[] {
    return this.arrivals.splice(0);
  }
  [Symbol.dispose](): void {
    this.disposed = true;
  }
}

function block(value: number): Uint8Array {
  return new Uint8Array(4096).fill(value);
}

function remoteHost(avoidance?: AvoidancePort) {
  const source = new SimSource();
  const host = new SimHost({
    source: (chainId) => chainId === "family/7" ? source : undefined,
    ...(avoidance && { avoidance }),
  });
  const cache = host.registry.createRemoteCache("/images/cache", BYTES, "family/7");
  for (const name of ["a", "b"]) {
    host.registry.createOverlay(`/images/${name}`, BYTES, { path: cache, format: "qcow2" }).image[Symbol.dispose]();
  }
  const answer = (...arrivals: BlockArrival[]) => {
    source.arrivals.push(...arrivals);
    host.service.onReadable(FD);
    host.run();
  };
  return { host, source, answer };
}

Deno.test("a block is fetched at its first read, once for all clones of the host", () => {
  const { host, source, answer } = remoteHost();
  const a = host.guest(8, "/images/a", "qcow2");
  const b = host.guest(9, "/images/b", "qcow2");
  ok(host.polled.has(FD));
  a.request(OP_READ, 16n, SimFrontend.wholePages(0, 3));
  b.request(OP_READ, 24n, [{ ref: SimFrontend.ref(0), first: 1, last: 2 }]);
  host.run(a);
  host.run(b);
  deepEqual(source.requested, [2, 3, 4]);
  equal(a.responses().length + b.responses().length, 0);
  answer({ block: 2, kind: "data", bytes: block(2) }, { block: 3, kind: "data", bytes: block(3) });
  deepEqual(b.responses().map(({ status }) => status), [RSP_OKAY]);
  equal(b.page(0)[512], 3);
  answer({ block: 4, kind: "zero" });
  deepEqual(a.responses().map(({ status }) => status), [RSP_OKAY]);
  deepEqual([a.page(0)[0], a.page(1)[0], a.page(2)[0]], [2, 3, 0]);
  a.request(OP_READ, 16n, SimFrontend.wholePages(5, 3));
  host.run(a);
  equal(a.responses().length, 1);
  equal(source.requested.length, 3);
});

Deno.test("a write of whole blocks fetches nothing, of parts fetches and merges", () => {
  const { host, source, answer } = remoteHost();
  const a = host.guest(8, "/images/a", "qcow2");
  a.page(0).fill(0xaa);
  a.request(OP_WRITE, 80n, SimFrontend.wholePages(0, 1));
  host.run(a);
  equal(a.responses().length, 1);
  deepEqual(source.requested, []);
  a.request(OP_WRITE, 87n, [{ ref: SimFrontend.ref(0), first: 0, last: 1 }]);
  host.run(a);
  deepEqual(source.requested, [11]);
  answer({ block: 11, kind: "data", bytes: block(0xbb) });
  equal(a.responses()[0]?.status, RSP_OKAY);
  a.request(OP_READ, 80n, SimFrontend.wholePages(1, 2));
  host.run(a);
  equal(a.responses()[0]?.status, RSP_OKAY);
  ok(a.page(1).every((byte) => byte === 0xaa));
  ok(a.page(2).every((byte, at) => byte === (at < 512 ? 0xaa : 0xbb)));
});

Deno.test("responses keep the ring's order, whatever is fetched; a block that cannot be had fails its request only", () => {
  const { host, answer } = remoteHost();
  const a = host.guest(8, "/images/a", "qcow2");
  const ids = [
    a.request(OP_READ, 0n, SimFrontend.wholePages(0, 2)),
    a.request(OP_WRITE, 800n, SimFrontend.wholePages(2, 1)),
    a.request(OP_READ, 800n, SimFrontend.wholePages(3, 1)),
  ];
  host.run(a);
  equal(a.responses().length, 0);
  answer({ block: 0, kind: "failed", reason: "the host is gone" }, { block: 1, kind: "data", bytes: block(1) });
  deepEqual(a.responses().map(({ id, status }) => [id, status]), [
    [ids[0], RSP_ERROR],
    [ids[1], RSP_OKAY],
    [ids[2], RSP_OKAY],
  ]);
  ok(host.refusals.includes("the host is gone"));
});

Deno.test("what nobody asked for is kept; what is nonsense is not", () => {
  const { host, source, answer } = remoteHost();
  const a = host.guest(8, "/images/a", "qcow2");
  answer(
    { block: 5, kind: "data", bytes: block(5) },
    { block: 5, kind: "data", bytes: block(99) },
    { block: -1, kind: "zero" },
    { block: 1e9, kind: "zero" },
    { block: 0.5, kind: "zero" },
    { block: 6, kind: "data", bytes: new Uint8Array(4095) },
  );
  a.request(OP_READ, 40n, SimFrontend.wholePages(0, 1));
  host.run(a);
  equal(a.responses()[0]?.status, RSP_OKAY);
  equal(a.page(0)[0], 5);
  a.request(OP_READ, 48n, SimFrontend.wholePages(0, 1));
  host.run(a);
  deepEqual(source.requested, [6]);
});

Deno.test("a freeze waits for what is being fetched; a fork of a remote clone stands on its overlay", async () => {
  const { host, source, answer } = remoteHost();
  const a = host.guest(8, "/images/a", "qcow2");
  const id = { domid: a.domid, devid: XVDA };
  a.request(OP_READ, 0n, SimFrontend.wholePages(0, 1));
  a.request(OP_WRITE, 8n, SimFrontend.wholePages(1, 1));
  host.run(a);
  let frozen = false;
  const freezing = host.service.freeze(id).then(() => frozen = true);
  await Promise.resolve();
  equal(frozen, false);
  answer({ block: 0, kind: "data", bytes: block(1) });
  await freezing;
  ok(host.service.takeNews());
  equal(a.responses().length, 2);
  const { frozen: image } = host.service.fork(id, { parent: "/images/a2", clones: ["/images/c"] });
  host.service.thaw(id);
  // The child's blocks are read for other hosts; those that this host lacks are fetched first.
  using blocks = new FrozenBlocks(host.registry, image);
  const bytes = new Uint8Array(4096);
  equal(blocks.read(0, bytes), "data");
  equal(bytes[0], 1);
  equal(blocks.read(1, bytes), "data");
  equal(blocks.read(9, bytes), "missing");
  let failure: string | undefined = "not called";
  blocks.fetch(9, (reason) => failure = reason);
  equal(source.requested.at(-1), 9);
  answer({ block: 9, kind: "zero" });
  equal(failure, undefined);
  equal(blocks.read(9, bytes), "zero");
  throws(() => blocks.read(1e6, bytes), { code: "INVALID" });
});

Deno.test("the cache outlives the service, and is of no use without its source", () => {
  const { host, source, answer } = remoteHost();
  const a = host.guest(8, "/images/a", "qcow2");
  const b = host.guest(9, "/images/b", "qcow2");
  answer({ block: 5, kind: "data", bytes: block(5) });
  host.service.detach({ domid: b.domid, devid: XVDA });
  ok(host.polled.has(FD) && !source.disposed);
  host.service.detach({ domid: a.domid, devid: XVDA });
  ok(!host.polled.has(FD) && source.disposed);
  const again = host.guest(8, "/images/a", "qcow2");
  again.request(OP_READ, 40n, SimFrontend.wholePages(0, 1));
  host.run(again);
  equal(again.page(0)[0], 5);
  deepEqual(source.requested, []);
  throws(() => new ImageRegistry(host.paths).open({ path: "/images/b", format: "qcow2" }, { write: true }), {
    code: "NO_SOURCE",
  });
});

Deno.test("whole absent pages are filled with what is read, not copied", () => {
  const filled: { ref: number; first: number }[] = [];
  let host: SimHost | undefined = undefined as SimHost | undefined;
  const avoidance: AvoidancePort = {
    fill(domid, pages: readonly PageFill[]) {
      equal(domid, 8);
      return Uint8Array.from(pages, ({ ref, address }) => {
        const staging = host?.machine.staging;
        ok(staging);
        filled.push({ ref, first: staging.bytes[Number(address - staging.address)] ?? -1 });
        // Page 1 is present already.
        return ref === SimFrontend.ref(1) ? 0 : 1;
      });
    },
  };
  const world = remoteHost(avoidance);
  host = world.host;
  const a = host.guest(8, "/images/a", "qcow2");
  world.answer(...[0, 1, 2].map((at) => ({ block: at, kind: "data" as const, bytes: block(at + 40) })));
  a.request(OP_READ, 0n, [...SimFrontend.wholePages(0, 2), { ref: SimFrontend.ref(2), first: 0, last: 3 }]);
  host.run(a);
  equal(a.responses()[0]?.status, RSP_OKAY);
  deepEqual(filled, [{ ref: SimFrontend.ref(0), first: 40 }, { ref: SimFrontend.ref(1), first: 41 }]);
  deepEqual([a.page(0)[0], a.page(1)[0], a.page(2)[0]], [0, 41, 42]);
  equal(host.service.statistics({ domid: a.domid, devid: XVDA }).copies?.avoidedPages, 1);
});
