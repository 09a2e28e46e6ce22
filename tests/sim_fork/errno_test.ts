import assert from "node:assert/strict";
import type { errno } from "../../hypercall/errors.ts";
import { Scene } from "./crash.ts";
import { sampleSteps } from "./samples.ts";

type Code = Parameters<typeof errno>[0];

/** Steps after the end of the ticket in which the parent is let go. */
const RELEASE_STEPS = 60;
const CODES: readonly Code[] = ["ENOMEM", "EBUSY", "EIO", "EAGAIN", "EINVAL", "ENOSPC"];
/** Codes of the engine that a caller may be told; each answer names one. */
const ERROR = /^error (failed|no-memory|cannot-suspend|busy|ended|no-such-domain) \S/;

async function failAt(scene: Scene, step: number, code: Code): Promise<void> {
  const { host, parent } = scene;
  scene.meet(step, { errno: code });
  const answer = await host.ask(parent, "request-ticket 2");
  const [, ticket, granted] = /^ok (\S+) ([12])$/.exec(answer) ?? [];
  if (ticket === undefined) assert.match(answer, ERROR);
  else {
    const cloned = await host.ask(parent, `clone ${ticket}`);
    const info = scene.engine.show(ticket);
    assert(info !== undefined && "clones" in info);
    assert.equal(info.clones.length, Number(granted));
    if (cloned === "ok 0") {
      assert(
        info.clones.every(({ state, reason }) => state === "running" || (state === "lost" && reason !== undefined)),
      );
    } else {
      assert.match(cloned, ERROR);
      assert(info.clones.every(({ state }) => state === "shell"), "the ticket can be used again");
    }
    assert.equal(await host.ask(parent, `kill ${ticket}`), "ok");
  }
  await scene.assertUnharmed();
}

Deno.test("an errno at any step of a fork is told, or costs a clone; the parent goes on and nothing is left", async () => {
  const first = await Scene.open();
  const { end } = await first.fork();
  await first.assertUnharmed();
  const { steps, seed } = sampleSteps(end + RELEASE_STEPS, 11, 12_000);
  let turn = seed;
  for (const step of steps) {
    const code = CODES[turn++ % CODES.length] ?? "EIO";
    const scene = await Scene.open();
    // The kernel lets go of a port that is bound, whatever happens.
    scene.spared.add("evtchn.unbind");
    try {
      await failAt(scene, step, code);
    } catch (cause) {
      throw new Error(`${code} of ${scene.met}, step ${step} (SIM_FORK_SEED=${seed})`, { cause });
    }
  }
});
