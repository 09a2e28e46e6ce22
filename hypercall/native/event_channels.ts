/** Event channels through `/dev/xen/evtchn` (drivers/xen/evtchn.c). */
import { EVTCHN, IoctlEvtchnBindInterdomain, IoctlEvtchnBindUnboundPort, IoctlEvtchnPort } from "../abi/mod.ts";
import { XenError } from "../errors.ts";
import type { Domid, EventChannelPort, Port } from "../ports.ts";
import { failedWith, type Libc, O_NONBLOCK, O_RDWR } from "./libc.ts";

const PORTS_A_READ = 1024;
/** The kernel's answer to a read after its list of fired ports overflowed. */
const EFBIG = 27;

export class EventChannels implements EventChannelPort {
  readonly fd: number;
  readonly #libc: Libc;
  readonly #bound = new Set<Port>();
  readonly #fired = new Uint32Array(PORTS_A_READ);
  readonly #one = new Uint32Array(1);

  constructor(libc: Libc) {
    this.#libc = libc;
    this.fd = libc.openFile("/dev/xen/evtchn", O_RDWR | O_NONBLOCK, "is the module xen-evtchn loaded?");
  }

  bindInterdomain(domid: Domid, remotePort: Port): Port {
    const argument = IoctlEvtchnBindInterdomain.encode({ remote_domain: domid, remote_port: remotePort });
    return this.#bind(`bind event channel ${remotePort} of domain ${domid}`, EVTCHN.BIND_INTERDOMAIN, argument);
  }

  bindUnbound(domid: Domid): Port {
    const argument = IoctlEvtchnBindUnboundPort.encode({ remote_domain: domid });
    return this.#bind(`make an event channel for domain ${domid}`, EVTCHN.BIND_UNBOUND_PORT, argument);
  }

  #bind(operation: string, request: number, argument: Uint8Array<ArrayBuffer>): Port {
    const port = this.#ioctl(operation, request, argument) as Port;
    this.#bound.add(port);
    return port;
  }

  unbind(port: Port): void {
    this.#ioctl(`unbind event channel ${port}`, EVTCHN.UNBIND, IoctlEvtchnPort.encode({ port }));
    this.#bound.delete(port);
  }

  notify(port: Port): void {
    this.#ioctl(`notify event channel ${port}`, EVTCHN.NOTIFY, IoctlEvtchnPort.encode({ port }));
  }

  pending(): Port[] {
    const bytes = new Uint8Array(this.#fired.buffer);
    const result = this.#libc.read(this.fd, bytes);
    if (result >= 0) return Array.from(this.#fired.subarray(0, result / 4), (port) => port as Port);
    if (failedWith(result, "EAGAIN")) return [];
    if (result === -EFBIG) {
      // Events were lost, none knows whose: clear the list and take every port as fired.
      this.#ioctl("clear the list of fired event channels", EVTCHN.RESET, new Uint8Array(4));
      return [...this.#bound];
    }
    throw new XenError("read the fired event channels", result);
  }

  unmask(port: Port): void {
    this.#one[0] = port;
    const result = this.#libc.write(this.fd, new Uint8Array(this.#one.buffer));
    if (result < 0) throw new XenError(`unmask event channel ${port}`, result);
  }

  #ioctl(operation: string, request: number, argument: Uint8Array<ArrayBuffer>): number {
    const result = this.#libc.ioctl(this.fd, request, argument);
    if (result < 0) throw new XenError(operation, result);
    return result;
  }

  [Symbol.dispose](): void {
    this.#libc.close(this.fd);
  }
}
