import assert from "node:assert/strict";
import type { BootOptions } from "../sim/mod.ts";
import { assertNothingLeft, hostState } from "./leftovers.ts";
import { SimHost } from "./sim_host.ts";

const FOUR_GIB = 1 << 20;
/** RAM may not lie where the toolstack has its special pages, from 0xfeff8. */
const LAYOUTS: Readonly<Record<string, BootOptions>> = {
  "one range": { ram: [{ first: 0, pages: 300 }] },
  "a hole below 1 MiB, as a PC has it": { ram: [{ first: 0, pages: 160 }, { first: 256, pages: 256 }] },
  "RAM above 4 GiB": { ram: [{ first: 0, pages: 200 }, { first: FOUR_GIB, pages: 300 }] },
  "RAM above 4 GiB with a hole": {
    ram: [{ first: 0, pages: 130 }, { first: FOUR_GIB, pages: 64 }, { first: FOUR_GIB + 70_000, pages: 64 }],
  },
  "RAM around the special pages": {
    ram: [{ first: 0, pages: 200 }, { first: 0xfeff8 - 40, pages: 40 }, { first: 0xff000, pages: 40 }],
  },
  "many scattered runs of a page": {
    ram: [{ first: 0, pages: 128 }, ...Array.from({ length: 60 }, (_, run) => ({ first: 1000 + run * 3, pages: 1 }))],
  },
  "whole superpages, and parts of some": {
    ram: [{ first: 0, pages: 1024 }, { first: 1536, pages: 512 }, { first: 2048 + 256, pages: 700 }],
  },
  "RAM that does not begin at 0": { ram: [{ first: 512, pages: 300 }] },
  "one vCPU": { ram: [{ first: 0, pages: 200 }], vcpus: 1 },
  "32 vCPUs, more than the ring has slots": { ram: [{ first: 0, pages: 300 }], vcpus: 32 },
};

for (const [name, options] of Object.entries(LAYOUTS)) {
  Deno.test(`layout: ${name}`, async () => {
    const host = new SimHost();
    const parent = host.boot(options);
    const vcpus = parent.guest.domain.vcpus.length;
    const half = parent.pages.filter((_, index) => index % 2 === 0);
    await host.run(parent, 0, parent.fill(0, half, { seed: 3, round: 1 }));
    const agent = await host.startAgent();
    const before = hostState(host);
    const { ticket, clones } = await host.fork(parent, 2);
    // Every vCPU of every machine at once, at different pages.
    for (const [index, workload] of [parent, ...clones].entries()) {
      for (let vcpu = 0; vcpu < vcpus; vcpu++) {
        const mine = workload.pages.filter((_, page) => page % vcpus === vcpu);
        workload.guest.spawn(
          vcpu,
          (function* () {
            yield* workload.verify(vcpu, mine);
            yield* workload.fill(vcpu, mine.slice(0, 20), { seed: 10 + index, round: 2 });
          })(),
        );
      }
    }
    // The kernels' programs stay.
    await host.until(() => [parent, ...clones].every(({ guest }) => guest.programs === 1), "every vCPU's work");
    await host.verifyAll();
    for (const clone of clones) {
      const report = await host.during(agent.memory.calls.report(clone.domid as never));
      assert(report !== undefined);
      const { pages, absent, faulted, pushed, zero, avoidedFree } = report;
      assert.equal(faulted + pushed + zero + avoidedFree, pages - absent, "each page was brought in by one cause");
    }
    assert.equal(await host.ask(parent, `kill ${ticket}`), "ok");
    await assertNothingLeft(host, before);
    await host.stopAgent();
  });
}
