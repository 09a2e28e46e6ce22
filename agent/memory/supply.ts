import { errno } from "../../hypercall/errors.ts";
import {
  type Address,
  type Domid,
  type ForeignMemoryPort,
  type Gfn,
  PAGE_BYTES,
  type PinnedMemory,
} from "../../hypercall/ports.ts";
import type { Xen } from "../../hypercall/xen_api.ts";
import { type HeldDomain, PageState } from "./held_domain.ts";
import type { HeldDomains } from "./held_domains.ts";
import type { Located } from "./snapshot.ts";

/** Frames that are mapped at a time. */
const MAP_BATCH = 256;

/** Why a page comes in: its counter. */
export type Cause = "faulted" | "fetched" | "pushed";
/** `elsewhere`: another host has it. */
export type Supplied = "in" | "lost" | Extract<Located, { kind: "elsewhere" }>;

/** Brings absent pages of clones in, from where their source says they are. */
export class Supply {
  readonly #xen: Xen;
  readonly #foreignMemory: ForeignMemoryPort;
  readonly #domains: HeldDomains;
  readonly #zeroPage: PinnedMemory;

  constructor(xen: Xen, foreignMemory: ForeignMemoryPort, domains: HeldDomains, zeroPage: PinnedMemory) {
    this.#xen = xen;
    this.#foreignMemory = foreignMemory;
    this.#domains = domains;
    this.#zeroPage = zeroPage;
  }

  bringIn(domain: HeldDomain, index: number, cause: Cause): Supplied {
    const gfn = domain.map.gfnAt(index);
    const located = domain.source?.locate(index) ?? { kind: "gone" as const, reason: "it has no source of memory" };
    switch (located.kind) {
      case "gone":
        this.#domains.lose(domain, located.reason);
        return "lost";
      case "elsewhere":
        return located;
      case "memory":
        return this.#prep(domain, index, gfn, located.address, cause);
      case "zero":
        return this.#prep(domain, index, gfn, undefined, located.cause === "free" ? "avoidedFree" : "zero");
      case "frame": {
        using mapping = this.#foreignMemory.map(located.domid, BigUint64Array.of(located.gfn), { write: false });
        if (mapping.errors[0] === 0) return this.#prep(domain, index, gfn, mapping.address, cause);
        this.#domains.lose(domain, `frame ${located.gfn.toString(16)} of domain ${located.domid} is gone`);
        return "lost";
      }
    }
  }

  /** Brings a page in whose content came from another host; undefined: zeros. */
  bringReceived(domain: HeldDomain, index: number, address: Address | undefined, cause: Cause): Supplied {
    return this.#prep(domain, index, domain.map.gfnAt(index), address, address === undefined ? "zero" : cause);
  }

  /**
   * Pages that a domain lacks and whose content is not zeros: what its source must live for. A page that was asked for on another host
   * counts.
   */
  lacking(domain: HeldDomain): Uint32Array {
    const indexes: number[] = [];
    domain.state.forEach((state, index) => {
      if (state !== PageState.absent && state !== PageState.awaited) return;
      if (domain.source?.locate(index).kind !== "zero") indexes.push(index);
    });
    return Uint32Array.from(indexes);
  }

  /** Many pages that nobody waits for, by multicall. Pages brought in, and those that are on another host. */
  push(domain: HeldDomain, indexes: Uint32Array): { pushed: number; elsewhere: number[] } {
    const batch: { index: number; address: bigint }[] = [];
    const frames = new Map<Domid, { index: number; gfn: Gfn }[]>();
    const elsewhere: number[] = [];
    let pushed = 0;
    for (const index of indexes) {
      if (domain.state[index] !== PageState.absent) continue;
      const located = domain.source?.locate(index);
      if (located?.kind === "memory") batch.push({ index, address: located.address });
      else if (located?.kind === "elsewhere") elsewhere.push(index);
      else if (located?.kind === "frame") {
        const known = frames.get(located.domid);
        if (known === undefined) frames.set(located.domid, [{ index, gfn: located.gfn }]);
        else known.push({ index, gfn: located.gfn });
      } else if (this.bringIn(domain, index, "pushed") === "in") pushed++;
    }
    using mappings = new DisposableStack();
    for (const [domid, wanted] of frames) {
      for (let at = 0; at < wanted.length; at += MAP_BATCH) {
        const part = wanted.slice(at, at + MAP_BATCH);
        const gfns = BigUint64Array.from(part, ({ gfn }) => gfn);
        const mapping = mappings.use(this.#foreignMemory.map(domid, gfns, { write: false }));
        part.forEach(({ index, gfn }, frame) => {
          if (mapping.errors[frame] === 0) batch.push({ index, address: mapping.address + BigInt(frame * PAGE_BYTES) });
          else this.#domains.lose(domain, `frame ${gfn.toString(16)} of domain ${domid} is gone`);
        });
      }
    }
    const gfns = domain.map.gfnsOf(Uint32Array.from(batch, ({ index }) => index));
    const results = this.#xen.prepMany(domain.domid, gfns, BigUint64Array.from(batch, ({ address }) => address));
    batch.forEach(({ index }, at) => {
      if (this.#finish(domain, index, results[at] ?? 0, "pushed") === "in") pushed++;
    });
    return { pushed, elsewhere };
  }

  #prep(
    domain: HeldDomain,
    index: number,
    gfn: Gfn,
    address: Address | undefined,
    counter: Cause | "zero" | "avoidedFree",
  ): Supplied {
    return this.#finish(domain, index, this.#xen.prep(domain.domid, gfn, address ?? this.#zeroPage.address), counter);
  }

  #finish(domain: HeldDomain, index: number, result: number, counter: Cause | "zero" | "avoidedFree"): Supplied {
    // ENOENT: it is in already.
    if (result !== 0 && result !== -errno("ENOENT")) {
      const reason = result === -errno("ENOMEM") ? "the host has no memory left" : `errno ${-result}`;
      this.#domains.lose(domain, `page ${index} cannot be brought in: ${reason}`);
      return "lost";
    }
    domain.state[index] = PageState.present;
    domain.counters[counter]++;
    return "in";
  }
}
