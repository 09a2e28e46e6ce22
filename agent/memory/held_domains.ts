import { getLogger } from "@logtape/logtape";
import { XenError } from "../../hypercall/errors.ts";
import type { Domid, EventChannelPort, ForeignMemoryPort, Gfn, Port } from "../../hypercall/ports.ts";
import { type PagingRequest, PagingRing } from "../../hypercall/ring.ts";
import type { Xen } from "../../hypercall/xen_api.ts";
import { HeldDomain, PageState } from "./held_domain.ts";
import { type GfnRange, MemoryMap } from "./memory_map.ts";

/** Answers for each vCPU of a domain that was taken over: one may have asked for several pages in one hypercall. */
const ORPHAN_ANSWERS = 4;

/** The domains whose paging rings this process has, and the event channels to them. */
export class HeldDomains {
  readonly #xen: Xen;
  readonly #foreignMemory: ForeignMemoryPort;
  readonly #events: EventChannelPort;
  readonly #domains = new Map<Domid, HeldDomain>();
  readonly #byPort = new Map<Port, HeldDomain>();
  readonly #onLost: (domain: HeldDomain, reason: string) => void;
  readonly #log = getLogger(["snowflock", "memory"]);

  constructor(
    xen: Xen,
    foreignMemory: ForeignMemoryPort,
    events: EventChannelPort,
    onLost: (domain: HeldDomain, reason: string) => void,
  ) {
    this.#xen = xen;
    this.#foreignMemory = foreignMemory;
    this.#events = events;
    this.#onLost = onLost;
  }

  get(domid: Domid): HeldDomain | undefined {
    return this.#domains.get(domid);
  }

  /** Throws for a domain that is not held. */
  expect(domid: Domid): HeldDomain {
    const domain = this.#domains.get(domid);
    if (domain === undefined) throw new Error(`Domain ${domid} is not held`);
    return domain;
  }

  byPort(port: Port): HeldDomain | undefined {
    return this.#byPort.get(port);
  }

  all(): HeldDomain[] {
    return [...this.#domains.values()];
  }

  /** Takes a domain's ring; its page is taken away from the guest. `before` runs when all is ready for it. */
  open(domid: Domid, ranges: readonly GfnRange[], ringGfn: Gfn, absent: boolean, before = () => {}): HeldDomain {
    using undo = new DisposableStack();
    const gfns = BigUint64Array.of(ringGfn);
    let mapping = this.#foreignMemory.map(domid, gfns, { write: true });
    if (mapping.errors[0] !== 0) {
      mapping[Symbol.dispose]();
      this.#xen.populate(domid, gfns, 0);
      mapping = this.#foreignMemory.map(domid, gfns, { write: true });
    }
    undo.use(mapping);
    const ring = new PagingRing(mapping.bytes);
    ring.initialise();
    before();
    const remote = this.#xen.pagingEnable(domid);
    undo.defer(() => this.#xen.pagingDisable(domid));
    const port = this.#events.bindInterdomain(domid, remote);
    undo.defer(() => this.#events.unbind(port));
    this.#xen.decreaseReservation(domid, gfns);
    const map = new MemoryMap(ranges);
    const domain = new HeldDomain({ domid, map, ring, ringMapping: mapping, ringGfn, port }, absent);
    this.#domains.set(domid, domain);
    this.#byPort.set(port, domain);
    undo.move();
    return domain;
  }

  /**
   * Takes the ring of a domain that another process held when it died, and that stands still: a touch of a nominated page between
   * the two rings is the domain's end. Which pages are nominated is not known: all are taken to be, and `vcpus` may wait for answers
   * that got lost.
   */
  takeOver(domid: Domid, ranges: readonly GfnRange[], ringGfn: Gfn, vcpus: number): HeldDomain {
    const domain = this.open(domid, ranges, ringGfn, false, () => {
      try {
        this.#xen.pagingDisable(domid);
      } catch (error) {
        // There was no ring: the other process died before it had one, or after it closed it.
        if (!(error instanceof XenError)) throw error;
      }
    });
    domain.state.fill(PageState.nominated);
    domain.orphanedVcpus = vcpus;
    return domain;
  }

  /** Closes the ring of a parent that has all its pages back. */
  letGo(domain: HeldDomain): void {
    try {
      using end = new DisposableStack();
      end.defer(() => this.drop(domain));
      this.#wakeOrphans(domain);
    } catch (error) {
      this.#log.error("a parent's ring was not closed as it should be", { domid: domain.domid, error });
    }
  }

  respond(domain: HeldDomain, request: PagingRequest): void {
    domain.ring.respond(request);
    this.#events.notify(domain.port);
  }

  /** The domain cannot go on. Told once. */
  lose(domain: HeldDomain, reason: string): void {
    if (domain.lost !== undefined) return;
    domain.lost = reason;
    this.#onLost(domain, reason);
  }

  /**
   * Closes a domain's ring, if the domain still is, and forgets it. `abandon` leaves the ring to Xen: a domain that needs it sleeps
   * then, instead of being crashed.
   */
  drop(domain: HeldDomain, abandon = false): void {
    if (!this.#domains.delete(domain.domid)) return;
    this.#byPort.delete(domain.port);
    domain.releaseCursor = undefined;
    using end = new DisposableStack();
    end.defer(() => {
      domain.source?.release();
      domain.source = undefined;
      for (const resolve of domain.onReleased.splice(0)) resolve();
    });
    end.use(domain.ringMapping);
    end.defer(() => this.#events.unbind(domain.port));
    if (!abandon) this.#disable(domain.domid);
  }

  /**
   * Lets vCPUs go on that waited for an answer of a process that died. Xen ignores answers that nobody waits for, but counts them: the
   * ring is spoilt. So this comes right before its end, when there is no page left for which anybody could ask.
   */
  #wakeOrphans(domain: HeldDomain): void {
    const gfn = domain.map.gfnAt(0);
    for (let vcpu = 0; vcpu < domain.orphanedVcpus; vcpu++) {
      for (let time = 0; time < ORPHAN_ANSWERS; time++) {
        domain.ring.respondForLost(vcpu, gfn);
        this.#events.notify(domain.port);
      }
    }
    domain.orphanedVcpus = 0;
  }

  #disable(domid: Domid): void {
    try {
      const info = this.#xen.domainInfo(domid);
      if (info !== undefined && !info.dying) this.#xen.pagingDisable(domid);
    } catch (error) {
      if (!(error instanceof XenError)) throw error;
      // EBUSY: vCPUs sleep until the ring has room. A clone is about to end, and its ring with it.
      this.#log.warn("a paging ring could not be closed", { domid, error });
    }
  }
}
