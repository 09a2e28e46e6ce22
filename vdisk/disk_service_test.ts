import { deepEqual, equal, ok, rejects, throws } from "node:assert/strict";
import type { Domid } from "../hypercall/ports.ts";
import {
  OP_FLUSH_DISKCACHE,
  OP_READ,
  OP_WRITE,
  OP_WRITE_BARRIER,
  RSP_EOPNOTSUPP,
  RSP_ERROR,
  RSP_OKAY,
  SharedRing,
} from "./blkif/abi.ts";
import { checkImage } from "./image_commands.ts";
import { seededRandom } from "./testing/crash_files.ts";
import { SimFrontend } from "./testing/sim_guest.ts";
import { SimHost, XVDA } from "./testing/sim_host.ts";

const ID = { domid: 7 as Domid, devid: XVDA };

function fill(page: Uint8Array, value: number): void {
  page.fill(value);
}

/** One request of whole pages, done. */
function perform(
  host: SimHost,
  front: SimFrontend,
  operation: number,
  sector: number,
  page: number,
  pages: number,
): number {
  const id = front.request(operation, BigInt(sector), SimFrontend.wholePages(page, pages));
  host.run(front);
  const responses = front.responses();
  deepEqual(responses.map((response) => response.id), [id]);
  return responses[0]?.status ?? NaN;
}

Deno.test("reads and writes reach the image, whole pages and parts of them", () => {
  const host = new SimHost();
  const front = host.guest(7, "/images/base.raw", "raw");
  fill(front.page(0), 0x11);
  fill(front.page(1), 0x22);
  front.request(OP_WRITE, 3n, [{ ref: SimFrontend.ref(0), first: 1, last: 2 }, {
    ref: SimFrontend.ref(1),
    first: 7,
    last: 7,
  }]);
  front.request(OP_FLUSH_DISKCACHE, 0n, []);
  front.request(OP_READ, 2n, [{ ref: SimFrontend.ref(2), first: 3, last: 7 }]);
  host.run(front);
  deepEqual(front.responses().map(({ status }) => status), [0, 0, 0]);
  const wanted = new Uint8Array(4096);
  wanted.fill(0x11, 4 * 512, 6 * 512);
  wanted.fill(0x22, 6 * 512, 7 * 512);
  deepEqual(front.page(2), wanted);
  equal(host.files.get("/images/base.raw")?.[3 * 512], 0x11);
  ok(host.files.syncs > 0);
});

Deno.test("a batch of 32 requests costs one grant copy each way, and a mebibyte goes by one indirect request", () => {
  const host = new SimHost();
  const front = host.guest(7, "/images/base.raw", "raw");
  for (let index = 0; index < 16; index++) front.request(OP_WRITE, BigInt(index * 8), SimFrontend.wholePages(index, 1));
  for (let index = 0; index < 16; index++) {
    front.request(OP_READ, BigInt(index * 8), SimFrontend.wholePages(100 + index, 1));
  }
  host.run(front);
  equal(front.responses().filter(({ status }) => status === RSP_OKAY).length, 32);
  equal(host.machine.copyCalls, 2);
  for (let index = 0; index < 256; index++) fill(front.page(index), index);
  equal(perform(host, front, OP_WRITE, 8, 0, 256), RSP_OKAY);
  equal(perform(host, front, OP_READ, 8, 300, 256), RSP_OKAY);
  for (let index = 0; index < 256; index++) deepEqual(front.page(300 + index), front.page(index));
});

Deno.test("what a disk cannot do is answered, with the status that says so", () => {
  const host = new SimHost();
  const front = host.guest(7, "/images/base.raw", "raw", false);
  equal(perform(host, front, OP_WRITE, 0, 0, 1), RSP_ERROR);
  equal(perform(host, front, OP_WRITE_BARRIER, 0, 0, 1), RSP_EOPNOTSUPP);
  equal(perform(host, front, 4, 0, 0, 1), RSP_EOPNOTSUPP);
  equal(perform(host, front, OP_READ, 8 * 2048, 0, 1), RSP_ERROR);
  equal(perform(host, front, OP_READ, 8 * 2048 - 8, 0, 1), RSP_OKAY);
});

Deno.test("parent and clones go their own ways, through forks of forks and two forks of one parent", async () => {
  const host = new SimHost();
  const parent = host.guest(7, "/images/base.raw", "raw");
  const write = (front: SimFrontend, block: number, value: number) => {
    fill(front.page(0), value);
    equal(perform(host, front, OP_WRITE, block * 8, 0, 1), RSP_OKAY);
  };
  const blocks = (front: SimFrontend) => {
    equal(perform(host, front, OP_READ, 0, 10, 4), RSP_OKAY);
    return [10, 11, 12, 13].map((page) => front.page(page)[99]);
  };
  write(parent, 0, 1);
  await host.service.freeze(ID);
  const first = host.service.fork(ID, { parent: "/images/p1", clones: ["/images/a", "/images/b"] });
  equal(first.frozen.path, "/images/base.raw");
  host.service.thaw(ID);
  const a = host.guest(8, "/images/a", "qcow2");
  const b = host.guest(9, "/images/b", "qcow2");
  write(parent, 1, 2);
  write(a, 1, 3);
  write(a, 0, 4);
  deepEqual([blocks(parent), blocks(a), blocks(b)], [[1, 2, 0, 0], [4, 3, 0, 0], [1, 0, 0, 0]]);
  await host.service.freeze(ID);
  host.service.fork(ID, { parent: "/images/p2", clones: ["/images/c"] });
  host.service.thaw(ID);
  const aId = { domid: a.domid, devid: XVDA };
  await host.service.freeze(aId);
  const ofA = host.service.fork(aId, { parent: "/images/a2", clones: ["/images/d"] });
  deepEqual(ofA, { frozen: { path: "/images/a", format: "qcow2" }, parent: "/images/a2", clones: ["/images/d"] });
  host.service.thaw(aId);
  const c = host.guest(10, "/images/c", "qcow2");
  const d = host.guest(11, "/images/d", "qcow2");
  write(parent, 3, 5);
  write(d, 0, 6);
  deepEqual(
    [blocks(parent), blocks(a), blocks(b), blocks(c), blocks(d)],
    [[1, 2, 0, 5], [4, 3, 0, 0], [1, 0, 0, 0], [1, 2, 0, 0], [6, 3, 0, 0]],
  );
  // A clone's overlay goes with it; one that others stand on stays.
  host.service.detach({ domid: b.domid, devid: XVDA }, { remove: true });
  ok(!host.files.paths().includes("/images/b"));
  while (host.service.housekeep());
  for (const path of ["/images/a", "/images/p1"]) {
    deepEqual(checkImage(host.paths, path).dirty, false);
    equal(checkImage(host.paths, path).leaks + checkImage(host.paths, path).undercounted, 0);
  }
  host.service[Symbol.dispose]();
  equal(host.machine.mapped, 0);
  equal(host.events.bound.size, 0);
  deepEqual(host.faults, []);
});

Deno.test("a fork without a write since the last one adds no layer", async () => {
  const host = new SimHost();
  host.guest(7, "/images/base.raw", "raw");
  for (let round = 0; round < 100; round++) {
    await host.service.freeze(ID);
    const forked = host.service.fork(ID, { parent: `/images/p${round}`, clones: [`/images/c${round}`] });
    deepEqual([forked.frozen.path, forked.parent], ["/images/base.raw", "/images/p0"]);
    host.service.thaw(ID);
  }
  deepEqual(host.service.statistics(ID).layerPaths, ["/images/p0", "/images/base.raw"]);
});

Deno.test("forks beyond the longest chain are refused, and nothing is left of them", async () => {
  const host = new SimHost();
  const front = host.guest(7, "/images/base.raw", "raw");
  let forks = 0;
  for (;; forks++) {
    equal(perform(host, front, OP_WRITE, 0, 0, 1), RSP_OKAY);
    await host.service.freeze(ID);
    const before = host.files.paths();
    try {
      host.service.fork(ID, { parent: `/images/p${forks}`, clones: [`/images/c${forks}`] });
    } catch (error) {
      ok(error instanceof Error && "code" in error && error.code === "TOO_LONG");
      deepEqual(host.files.paths(), before);
      break;
    }
    host.service.thaw(ID);
  }
  equal(forks, 63);
  host.service.thaw(ID);
  equal(perform(host, front, OP_READ, 0, 1, 1), RSP_OKAY);
});

Deno.test("a fork whose files are there already leaves the disk as it was", async () => {
  const host = new SimHost();
  const front = host.guest(7, "/images/base.raw", "raw");
  await host.service.freeze(ID);
  host.files.put("/images/c", new Uint8Array(4));
  throws(() => host.service.fork(ID, { parent: "/images/p", clones: ["/images/b", "/images/c"] }), { code: "EEXIST" });
  deepEqual(host.files.paths().sort(), ["/images/base.raw", "/images/c"]);
  throws(() => host.service.fork(ID, { parent: "/elsewhere/p", clones: [] }), { code: "ENOENT" });
  host.service.thaw(ID);
  equal(perform(host, front, OP_WRITE, 0, 0, 1), RSP_OKAY);
});

Deno.test("a frozen disk takes no request, and goes on where it stopped", async () => {
  const host = new SimHost();
  const front = host.guest(7, "/images/base.raw", "raw");
  await host.service.freeze(ID);
  await rejects(async () => await host.service.freeze(ID), { code: "BUSY" });
  front.request(OP_READ, 0n, SimFrontend.wholePages(0, 1));
  host.run(front);
  equal(front.responses().length, 0);
  host.service.thaw(ID);
  host.run();
  equal(front.responses().length, 1);
  throws(() => host.service.fork(ID, { parent: "/images/p", clones: [] }), { code: "BUSY" });
});

Deno.test("a successor serves the ring on, from the first unanswered request", () => {
  const host = new SimHost();
  const front = host.guest(7, "/images/base.raw", "raw");
  for (let index = 0; index < 40; index++) equal(perform(host, front, OP_READ, 0, 0, 1), RSP_OKAY);
  fill(front.page(3), 0x77);
  const ids = [0, 1, 2].map((index) => front.request(OP_WRITE, BigInt(index * 8), SimFrontend.wholePages(3, 1)));
  host.restart();
  const sentBefore = host.events.sent.size;
  host.service.attach({ ...ID, image: { path: "/images/base.raw", format: "raw" }, write: true });
  host.service.connect(ID, { ringRef: front.ringRef, eventChannel: front.port });
  host.run();
  deepEqual(front.responses().map(({ id, status }) => [id, status]), ids.map((id) => [id, RSP_OKAY]));
  equal(host.files.get("/images/base.raw")?.[2 * 4096], 0x77);
  ok(host.events.sent.size > sentBefore);
});

Deno.test("a producer index that no guest can have ends the ring, and nothing else", () => {
  const host = new SimHost();
  const bad = host.guest(7, "/images/base.raw", "raw", false);
  const good = host.guest(8, "/images/base.raw", "raw", false);
  bad.produce(1_000_000);
  host.run(bad);
  ok(host.service.statistics(ID).broken?.includes("producer index"));
  bad.request(OP_READ, 0n, SimFrontend.wholePages(0, 1));
  host.run(bad);
  equal(bad.responses().length, 0);
  equal(perform(host, good, OP_READ, 0, 0, 1), RSP_OKAY);
  host.service.disconnect(ID);
  equal(host.machine.mapped, 1);
});

Deno.test("a disk that fails to flush says so to the guest, and takes no more writes", () => {
  const host = new SimHost();
  const front = host.guest(7, "/images/base.raw", "raw");
  equal(perform(host, front, OP_WRITE, 0, 0, 1), RSP_OKAY);
  host.files.fuse = 0;
  front.request(OP_FLUSH_DISKCACHE, 0n, []);
  host.run(front);
  deepEqual(front.responses().map(({ status }) => status), [RSP_ERROR]);
  host.files.fuse = undefined;
  equal(perform(host, front, OP_WRITE, 0, 0, 1), RSP_ERROR);
  equal(perform(host, front, OP_READ, 0, 0, 1), RSP_OKAY);
});

Deno.test("one image serves one writer", () => {
  const host = new SimHost();
  host.guest(7, "/images/base.raw", "raw");
  throws(() => host.guest(8, "/images/base.raw", "raw"), { code: "BUSY" });
  throws(() => host.guest(7, "/images/base.raw", "raw"), { code: "EEXIST" });
});

Deno.test("thousands of random requests leave the service whole", () => {
  for (let seed = 1; seed <= 40; seed++) {
    const random = seededRandom(seed);
    const pick = (count: number) => Math.floor(random() * count);
    const host = new SimHost();
    const bad = host.guest(7, "/images/base.raw", "raw", random() < 0.5);
    host.machine.grant(bad.domid, 5000, new Uint8Array(4096), true);
    let answered = 0;
    let sent = 0;
    for (let round = 0; round < 60; round++) {
      for (let count = pick(33); count > 0; count--) {
        const slot = new Uint8Array(112);
        if (random() < 0.4) {
          // Bytes without sense, but for an operation that exists.
          for (let at = 0; at < slot.byteLength; at++) slot[at] = pick(256);
          slot[0] = pick(8);
          bad.raw(slot);
        } else if (random() < 0.3) {
          for (let at = 0; at < 4096; at++) bad.page(599)[at] = random() < 0.9 ? pick(8) : pick(256);
          bad.raw(
            bad.indirect(pick(4), BigInt(round), BigInt(pick(20_000)), pick(600), random() < 0.7 ? 1599 : pick(9999)),
          );
        } else {
          const segments = Array.from({ length: pick(12) }, () => ({
            ref: random() < 0.9 ? SimFrontend.ref(pick(500)) : pick(10_000),
            first: pick(9),
            last: pick(9),
          }));
          bad.request(pick(4), random() < 0.8 ? BigInt(pick(17_000)) : 2n ** BigInt(pick(64)), segments);
        }
        sent++;
      }
      // The guest scribbles over the ring while it is worked on; the indices are another test's.
      if (random() < 0.2) bad.ring[SharedRing.offsets.ring + pick(3000)] = pick(256);
      host.run(bad);
      answered += bad.responses().length;
    }
    equal(answered, sent, `seed ${seed}: each request is answered once`);
    equal(perform(host, bad, OP_READ, 0, 0, 1), RSP_OKAY, `seed ${seed}`);
    equal(host.files.get("/images/base.raw")?.byteLength, 8 * 1024 * 1024);
  }
});

Deno.test("wild indices, by thousands, never break the process", () => {
  for (let seed = 1; seed <= 200; seed++) {
    const random = seededRandom(seed);
    const host = new SimHost();
    const front = host.guest(7, "/images/base.raw", "raw", false);
    for (let round = 0; round < 20; round++) {
      const indices = new DataView(front.ring.buffer);
      const wild = random() < 0.5 ? Math.floor(random() * 2 ** 32) : Math.floor(random() * 80);
      indices.setUint32(4 * Math.floor(random() * 4), wild, true);
      host.run(front);
    }
    ok(host.service.statistics(ID).connected);
    deepEqual(host.faults, []);
  }
});
