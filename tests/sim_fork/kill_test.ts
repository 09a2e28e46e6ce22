import assert from "node:assert/strict";
import { Scene } from "./crash.ts";
import { sampleSteps } from "./samples.ts";

/** Steps after the ticket's end in which the parent's pages are given back. */
const RELEASE_STEPS = 60;

/** The steps of an undisturbed fork: how many, and from which to which the parent stands still. */
async function measure(): Promise<{ last: number; suspend: number; resume: number }> {
  const scene = await Scene.open();
  scene.faults.trace = [];
  const { ticket, end } = await scene.fork();
  const { trace } = scene.faults;
  await scene.assertUnharmed();
  const suspend = trace.indexOf("domctl.shadow_op", ticket);
  const resume = trace.indexOf("xenstore.RESUME", ticket);
  assert(suspend > 0 && resume > suspend);
  return { last: end + RELEASE_STEPS, suspend: suspend + 1, resume: resume + 1 };
}

/** The agent dies at a step and is started again; `again`: the new one dies too, at that step of its own. */
async function dieAt(step: number, fate: "kill" | "kill-after", again?: number): Promise<void> {
  const scene = await Scene.open();
  const { host } = scene;
  scene.meet(step, fate);
  const asked = scene.fork();
  asked.catch(() => {});
  await host.until(() => scene.agent?.machine.killed === true, `step ${step}`);
  if (again !== undefined) {
    const second = host.openAgent();
    const opened = second.faults.steps;
    second.faults.onStep = ({ number }) => number === opened + again ? "kill" : undefined;
    second.start().catch(() => {});
    await host.until(() => second.machine.killed, `step ${again} of the second agent`);
  }
  const { engine } = (await host.startAgent()).agent;
  // A request without an answer is carried out by the new agent.
  await host.during(asked);
  for (const { ticket, state } of engine.list()) if (state !== "ended") await host.during(engine.kill(ticket));
  await scene.assertUnharmed();
}

async function named(what: string, seed: number, work: Promise<void>): Promise<void> {
  try {
    await work;
  } catch (cause) {
    throw new Error(`${what} (SIM_FORK_SEED=${seed})`, { cause });
  }
}

Deno.test("an agent that is killed at any step of a fork loses no parent and leaves nothing", async () => {
  const { last, suspend, resume } = await measure();
  const always = Array.from({ length: resume + 3 - suspend }, (_, index) => suspend - 1 + index);
  const { steps, seed } = sampleSteps(last, 13, 8000, always);
  for (const step of steps) await named(`killed at step ${step}`, seed, dieAt(step, "kill"));
});

Deno.test("an agent that is killed just after a step leaves nothing either", async () => {
  const { last } = await measure();
  const { steps, seed } = sampleSteps(last, 61, 4000);
  for (const step of steps) await named(`killed after step ${step}`, seed, dieAt(step, "kill-after"));
});

Deno.test("an agent that is killed while it cleans up after another leaves nothing", async () => {
  const { last, resume } = await measure();
  const { steps, seed } = sampleSteps(70, 6, 5000);
  for (const again of steps) {
    const step = again % 4 === 0 ? resume : last - RELEASE_STEPS - 90;
    await named(`killed at step ${step}, then at ${again}`, seed, dieAt(step, "kill", again));
  }
});
