/** What is on a host beside the guests that were booted: compared before and after, to find what was left. */
import assert from "node:assert/strict";
import { isDeepStrictEqual } from "node:util";
import { walk } from "../sim/xenstore/tree.ts";
import type { SimHost } from "./sim_host.ts";

export interface HostState {
  readonly domids: readonly number[];
  /** Nodes of xenstore, but for those in which guests and the agent talk. */
  readonly nodes: readonly string[];
  /** Host pages that are neither free nor of a guest that was booted. */
  readonly usedPages: number;
  /** Event channels of domain 0, but for xenstored's to guests that were booted. */
  readonly ports: number;
  /** Guests whose rings are held, that are paged or logged, or stand still. */
  readonly disturbed: readonly string[];
}

export function hostState(host: SimHost): HostState {
  const { xen, xenstore } = host;
  const domains = xen.domains();
  const nodes: string[] = [];
  walk(xenstore.root, "/", (path) => {
    if (!/^\/local\/domain\/\d+\/data\/snowflock(\/|$)/.test(path)) nodes.push(path);
  });
  const booted = domains.filter(({ domid }) => host.booted.has(domid));
  const disturbed = booted.flatMap((domain) => [
    ...domain.paging.enabled ? [`domain ${domain.domid} has a paging ring`] : [],
    ...domain.memory.dirty !== undefined ? [`writes of domain ${domain.domid} are logged`] : [],
    ...domain.shutdownCode !== undefined ? [`domain ${domain.domid} has shut down: ${domain.shutdownCode}`] : [],
    ...domain.pauses > 0 ? [`domain ${domain.domid} is paused`] : [],
    ...domain.memory.pagedPages > 0 ? [`${domain.memory.pagedPages} pages of ${domain.domid} are paged`] : [],
    ...domain.vcpus.filter((vcpu) => !vcpu.ready).map((vcpu) => `vCPU ${vcpu.id} of domain ${domain.domid} waits`),
  ]);
  const owned = booted.reduce((sum, { memory }) => sum + memory.liveFrames + memory.p2m.poolPages, 0);
  return {
    domids: domains.map(({ domid }) => domid),
    nodes: nodes.sort(),
    usedPages: xen.memory.totalPages - xen.memory.freePages - owned,
    ports: xen.eventChannels.openPorts(0).length - booted.length,
    disturbed,
  };
}

/** How long what follows an end may take, in rounds. */
const ROUNDS = 500;

/** Fails unless the host becomes as it was. */
export async function assertNothingLeft(host: SimHost, before: HostState): Promise<void> {
  for (let round = 0; round < ROUNDS && !isDeepStrictEqual(hostState(host), before); round++) await host.round();
  assert.deepEqual(hostState(host), before);
}
