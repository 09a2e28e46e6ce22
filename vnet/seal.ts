/**
 * IPsec between hosts for VXLAN: without it, whoever can send with a peer's address can send frames into a family. ESP in
 * transport mode, AES-128-GCM (RFC 4106), one pair of keys for each pair of hosts; only packets to or from the VXLAN port.
 * A family whose settings say `sealed` takes nothing that did not come this way.
 *
 * Keys come from the agents, over their authenticated channel. **A key is used once**: a kernel counts its nonces from the
 * start for every association, so a restarted agent agrees on new keys and never installs an old one again.
 */
import { ipVersion } from "./addresses.ts";
import { batch, CommandError, type CommandRunner } from "./commands.ts";
import { SettingsError, type Underlay } from "./settings.ts";

/** One direction between two hosts. */
export interface SealKey {
  /** Security parameter index, 256 to 2^32 - 1, chosen by the receiving host; new with every key. */
  readonly spi: number;
  /** 16 bytes of key and 4 of salt. */
  readonly key: Uint8Array;
}

export interface SealedPeer {
  readonly address: string;
  readonly outbound: SealKey;
  readonly inbound: SealKey;
}

/** Marks what is ours among a host's associations and policies, so that nothing else is touched. */
const REQUEST_ID = 0x5f10cc;
/** Packets that may arrive late without being taken for replays. */
const REPLAY_WINDOW = 128;

/** Host and peer as `ip xfrm` selects a policy: what goes to the port, of VXLAN in both directions (RFC 7348, section 5). */
function selector(from: string, to: string, port: number): string {
  const bits = ipVersion(from) === 4 ? 32 : 128;
  return `src ${from}/${bits} dst ${to}/${bits} proto udp dport ${port}`;
}

function state(from: string, to: string, { spi, key }: SealKey): string {
  if (!Number.isInteger(spi) || spi < 256 || spi > 0xffffffff) throw new SettingsError(`${spi} is no SPI`);
  if (key.byteLength !== 20) throw new SettingsError(`A sealing key is 20 bytes, not ${key.byteLength}`);
  return `xfrm state add src ${from} dst ${to} proto esp spi ${spi} reqid ${REQUEST_ID} mode transport ` +
    `replay-window ${REPLAY_WINDOW} flag esn aead rfc4106(gcm(aes)) 0x${key.toHex()} 128`;
}

/** The lines for `ip -batch`, for one peer. Policies come first: between the two, packets are held back, not sent in the clear. */
export function sealLines(underlay: Underlay, peer: SealedPeer): string[] {
  const { address, port = 4789 } = underlay;
  const template = `tmpl src %s proto esp reqid ${REQUEST_ID} mode transport level required`;
  const policy = (direction: "in" | "out", from: string, to: string) =>
    `xfrm policy update ${selector(from, to, port)} dir ${direction} ` +
    template.replace("src %s", `src ${from} dst ${to}`);
  return [
    policy("out", address, peer.address),
    policy("in", peer.address, address),
    state(peer.address, address, peer.inbound),
    state(address, peer.address, peer.outbound),
  ];
}

/** Policies and associations of this host with its peers. */
export class UnderlaySeal {
  readonly #runner: CommandRunner;
  readonly #underlay: Underlay;

  constructor(runner: CommandRunner, underlay: Underlay) {
    this.#runner = runner;
    this.#underlay = underlay;
  }

  /** Seals what goes to and comes from the peer, from now on, with these keys; earlier keys for it are dropped. */
  async seal(peer: SealedPeer): Promise<void> {
    const { address } = this.#underlay;
    const lines = sealLines(this.#underlay, peer);
    const drop = [[address, peer.address], [peer.address, address]].map(([from, to]) =>
      `xfrm state deleteall src ${from} dst ${to} proto esp reqid ${REQUEST_ID}`
    );
    const [out = "", inward = "", ...states] = lines;
    await batch(this.#runner, `seal the way to ${peer.address}`, "ip", [out, inward, ...drop, ...states]);
  }

  /** Drops every association of ours and every policy with it: at the end, and for a dead agent's. */
  async clear(peers: readonly string[]): Promise<void> {
    const { address, port = 4789 } = this.#underlay;
    await batch(this.#runner, "drop the seals", "ip", [`xfrm state deleteall reqid ${REQUEST_ID}`]);
    for (const peer of peers) {
      // One line at a time, for a policy that is not there is an error.
      for (const line of [`${selector(address, peer, port)} dir out`, `${selector(peer, address, port)} dir in`]) {
        const result = await this.#runner.run(["ip", ...`xfrm policy delete ${line}`.split(" ")]);
        if (result.status !== 0 && !/No such file/.test(result.stderr)) {
          throw new CommandError(`unseal the way to ${peer}`, ["ip", "xfrm"], result);
        }
      }
    }
  }
}
