/** `/dev/xen/evtchn` of a simulated process. */
import { errno, XenError } from "../../hypercall/errors.ts";
import type { Domid, EventChannelPort, Port } from "../../hypercall/ports.ts";
import type { SimMachine } from "./machine.ts";
import type { Descriptors } from "./poller.ts";

export class SimEventChannels implements EventChannelPort {
  readonly fd: number;
  readonly #machine: SimMachine;
  readonly #descriptors: Descriptors;
  readonly #bound = new Set<number>();
  readonly #held: Disposable;
  #fired: number[] = [];
  #closed = false;

  constructor(machine: SimMachine, descriptors: Descriptors) {
    this.#machine = machine;
    this.#descriptors = descriptors;
    this.fd = descriptors.open(() => this.#fired.length > 0);
    this.#held = machine.hold(this);
  }

  bindInterdomain(domid: Domid, remotePort: Port): Port {
    const operation = `bind event channel ${remotePort} of domain ${domid}`;
    return this.#bind("evtchn.bind_interdomain", operation, () => {
      return this.#channels.bindInterdomain(0, domid, remotePort, (port) => void this.#fired.push(port));
    });
  }

  bindUnbound(domid: Domid): Port {
    return this.#bind("evtchn.bind_unbound", `make an event channel for domain ${domid}`, () => {
      const port = this.#channels.allocateUnbound(0, domid);
      if (port > 0) this.#channels.setHandler(0, port, (fired) => void this.#fired.push(fired));
      return port;
    });
  }

  #bind(name: string, operation: string, bind: () => number): Port {
    // Known as bound within the step: a process that is killed after it loses the port.
    const bound = () => {
      const port = bind();
      if (port >= 0) this.#bound.add(port);
      return port;
    };
    const port = this.#machine.step(name, bound, (code) => -errno(code));
    if (port < 0) throw new XenError(operation, port);
    return port as Port;
  }

  unbind(port: Port): void {
    const result = this.#machine.step("evtchn.unbind", () => this.#close(port), (code) => -errno(code));
    if (result < 0) throw new XenError(`unbind event channel ${port}`, result);
  }

  #close(port: number): number {
    if (!this.#bound.delete(port)) return -errno("EINVAL");
    this.#fired = this.#fired.filter((fired) => fired !== port);
    return this.#channels.close(0, port);
  }

  notify(port: Port): void {
    const send = () => this.#bound.has(port) ? this.#channels.send(0, port) : -errno("EINVAL");
    const result = this.#machine.step("evtchn.notify", send, (code) => -errno(code));
    if (result < 0) throw new XenError(`notify event channel ${port}`, result);
  }

  pending(): Port[] {
    this.#machine.checkAlive();
    const fired = this.#fired;
    this.#fired = [];
    return fired.map((port) => port as Port);
  }

  unmask(port: Port): void {
    this.#machine.checkAlive();
    // The kernel ignores ports of others.
    if (this.#bound.has(port)) this.#channels.unmask(0, port);
  }

  get #channels() {
    return this.#machine.xen.eventChannels;
  }

  [Symbol.dispose](): void {
    if (this.#closed) return;
    this.#closed = true;
    for (const port of [...this.#bound]) this.#close(port);
    this.#descriptors.close(this.fd);
    this.#held[Symbol.dispose]();
  }
}
