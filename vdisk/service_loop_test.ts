import { deepEqual, equal } from "node:assert/strict";
import type { Domid } from "../hypercall/ports.ts";
import { OP_WRITE } from "./blkif/abi.ts";
import { runServiceLoop } from "./service_loop.ts";
import { SimFrontend } from "./testing/sim_guest.ts";
import { SimHost, XVDA } from "./testing/sim_host.ts";
import { imageInfo } from "./image_commands.ts";

Deno.test("the loop serves rings, performs commands, and seals when idle; it sleeps only when nothing is left", async () => {
  const host = new SimHost();
  const front = host.guest(7, "/images/base.raw", "raw");
  const id = { domid: 7 as Domid, devid: XVDA };
  const WAKEUP = 9;
  let signalled = true;
  let stopped = false;
  const commands: (() => void)[] = [];
  const done: string[] = [];
  const fork = (name: string) => {
    host.service.freeze(id).then(() => {
      host.service.fork(id, { parent: `/images/${name}`, clones: [] });
      host.service.thaw(id);
      done.push(name);
    });
  };
  const write = () => {
    front.request(OP_WRITE, 0n, SimFrontend.wholePages(0, 1));
    host.events.fire(front.domid, front.port);
  };
  // What happens at each sleep.
  const script = [
    () => commands.push(() => fork("p1")),
    () => write(),
    () => commands.push(() => fork("p2")),
    () => {
      // The frozen p1 was sealed before the loop went to sleep.
      equal(imageInfo(host.paths, { path: "/images/p1", format: "qcow2" }).dirty, false);
      commands.push(() => stopped = true);
    },
  ];
  const sleeps: number[] = [];
  await runServiceLoop(
    host.service,
    {
      add: () => {},
      remove: () => {},
      wait(timeoutMs) {
        const ready = () => [...(signalled ? [WAKEUP] : []), ...(host.events.readable ? [host.events.fd] : [])];
        if (timeoutMs !== 0 && ready().length === 0) {
          sleeps.push(timeoutMs);
          script.shift()?.();
          if (commands.length > 0) signalled = true;
        }
        return ready();
      },
      [Symbol.dispose]() {},
    },
    {
      fd: WAKEUP,
      signal: () => {},
      drain: () => {
        signalled = false;
      },
      [Symbol.dispose]() {},
    },
    async () => {
      for (const command of commands.splice(0)) command();
      for (let turn = 0; turn < 10; turn++) await Promise.resolve();
    },
    () => stopped,
  );
  deepEqual(done, ["p1", "p2"]);
  deepEqual(sleeps, [-1, -1, -1, -1]);
  equal(front.responses().length, 1);
  deepEqual(host.faults, []);
});
