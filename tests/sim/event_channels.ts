/** Event channels of all domains of one host (common/event_channel.c). */
import { no } from "./errno.ts";

/** Without a limit of the domain's own (2-level channels). */
const DEFAULT_MAX_PORT = 4095;

interface Channel {
  state: "unbound" | "interdomain";
  remoteDomid: number;
  /** Of an interdomain channel. */
  remotePort: number;
  pending: boolean;
  masked: boolean;
  /** Xen itself is this end: a notification calls it. */
  xenConsumer: (() => void) | undefined;
  /** Takes the port out of "pending" as an interrupt handler does. Without one the port just stays pending. */
  handler: (() => void) | undefined;
}

export interface ChannelStatus {
  readonly state: "unbound" | "interdomain";
  readonly remoteDomid: number;
  readonly remotePort: number;
}

class PortTable {
  readonly channels = new Map<number, Channel>();
  constructor(readonly maxPort: number) {}

  freePort(): number | undefined {
    for (let port = 1; port <= this.maxPort; port++) if (!this.channels.has(port)) return port;
    return undefined;
  }
}

export class EventChannels {
  readonly #tables = new Map<number, PortTable>();

  addDomain(domid: number, maxPort = DEFAULT_MAX_PORT): void {
    this.#tables.set(domid, new PortTable(Math.min(maxPort, DEFAULT_MAX_PORT)));
  }

  /** Port, or -errno. `xenConsumer`: Xen is this end. */
  allocateUnbound(domid: number, remoteDomid: number, xenConsumer?: () => void): number {
    const table = this.#tables.get(domid);
    if (table === undefined) return no("ESRCH");
    const port = table.freePort();
    if (port === undefined) return no("ENOSPC");
    table.channels.set(port, {
      state: "unbound",
      remoteDomid,
      remotePort: 0,
      pending: false,
      masked: false,
      xenConsumer,
      handler: undefined,
    });
    return port;
  }

  /** Local port, or -errno. The new port is pending at once: a notification may have been lost before. */
  bindInterdomain(domid: number, remoteDomid: number, remotePort: number, handler?: (port: number) => void): number {
    const local = this.#tables.get(domid);
    const remoteTable = this.#tables.get(remoteDomid);
    if (local === undefined || remoteTable === undefined) return no("ESRCH");
    const port = local.freePort();
    if (port === undefined) return no("ENOSPC");
    const remote = remoteTable.channels.get(remotePort);
    if (remote === undefined || remote.state !== "unbound" || remote.remoteDomid !== domid) return no("EINVAL");
    const channel: Channel = {
      state: "interdomain",
      remoteDomid,
      remotePort,
      pending: false,
      masked: false,
      xenConsumer: undefined,
      handler: handler && (() => handler(port)),
    };
    local.channels.set(port, channel);
    remote.state = "interdomain";
    remote.remoteDomid = domid;
    remote.remotePort = port;
    setPending(channel);
    return port;
  }

  setHandler(domid: number, port: number, handler: (port: number) => void): void {
    const channel = this.#tables.get(domid)?.channels.get(port);
    if (channel === undefined) throw new Error("the simulator gave a handler to a port that is not there");
    channel.handler = () => handler(port);
  }

  /** EVTCHNOP_send: 0 or -errno. A port that nobody bound yet drops it. */
  send(domid: number, port: number): number {
    const channel = this.#tables.get(domid)?.channels.get(port);
    if (channel === undefined || channel.xenConsumer !== undefined) return no("EINVAL");
    this.#notify(channel);
    return 0;
  }

  /** Xen's own notification through a port that it consumes. */
  sendFromXen(domid: number, port: number): void {
    const channel = this.#tables.get(domid)?.channels.get(port);
    if (channel !== undefined) this.#notify(channel);
  }

  #notify(channel: Channel): void {
    if (channel.state !== "interdomain") return;
    const remote = this.#tables.get(channel.remoteDomid)?.channels.get(channel.remotePort);
    if (remote === undefined) return;
    if (remote.xenConsumer !== undefined) remote.xenConsumer();
    else setPending(remote);
  }

  /** EVTCHNOP_close: 0 or -errno. The other end becomes unbound again. */
  close(domid: number, port: number, byXen = false): number {
    const table = this.#tables.get(domid);
    const channel = table?.channels.get(port);
    if (table === undefined || channel === undefined) return no("EINVAL");
    if (channel.xenConsumer !== undefined && !byXen) return no("EINVAL");
    table.channels.delete(port);
    if (channel.state === "interdomain") {
      const remote = this.#tables.get(channel.remoteDomid)?.channels.get(channel.remotePort);
      if (remote !== undefined) {
        remote.state = "unbound";
        remote.remoteDomid = domid;
        remote.remotePort = 0;
      }
    }
    return 0;
  }

  /** The handler of a masked port is called only once it is unmasked. */
  unmask(domid: number, port: number): void {
    const channel = this.#tables.get(domid)?.channels.get(port);
    if (channel === undefined) return;
    channel.masked = false;
    deliver(channel);
  }

  /** Ports of a guest that are pending, which it takes. */
  takePending(domid: number): number[] {
    const ports: number[] = [];
    for (const [port, channel] of this.#tables.get(domid)?.channels ?? []) {
      if (!channel.pending) continue;
      channel.pending = false;
      ports.push(port);
    }
    return ports;
  }

  status(domid: number, port: number): ChannelStatus | undefined {
    return this.#tables.get(domid)?.channels.get(port);
  }

  openPorts(domid: number): number[] {
    return [...this.#tables.get(domid)?.channels.keys() ?? []];
  }

  removeDomain(domid: number): void {
    for (const port of this.openPorts(domid)) this.close(domid, port, true);
    this.#tables.delete(domid);
  }
}

function setPending(channel: Channel): void {
  channel.pending = true;
  deliver(channel);
}

/** An interrupt handler acknowledges the port and masks it, until its user has seen it. */
function deliver(channel: Channel): void {
  if (channel.handler === undefined || !channel.pending || channel.masked) return;
  channel.pending = false;
  channel.masked = true;
  channel.handler();
}
