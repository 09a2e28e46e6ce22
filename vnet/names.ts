/** Names of what a family has on a host. All begin with the prefix, so that a dead agent's leftovers are found. */

/** Devices within the family's own namespace; the same in each. */
export const BRIDGE = "br0";
export const OVERLAY = "overlay0";
export const UPLINK_INNER = "uplink0";

export interface NetworkNames {
  readonly namespace: string;
  /** The host's end of the way out. */
  readonly uplink: string;
  /** What every uplink's name begins with. */
  readonly uplinkPrefix: string;
  /** nftables allows no hyphen. */
  readonly hostTable: string;
  readonly directory: string;
}

/** What this host's names begin with, and where its files are. */
export interface HostNaming {
  /** Lower-case letters and digits, then a hyphen; 8 characters at most. "sf-" by default. */
  readonly prefix?: string;
  /** Holds a folder a family; "/run/snowflock/net" by default. */
  readonly stateDirectory?: string;
}

export class Naming {
  readonly prefix: string;
  readonly stateDirectory: string;

  constructor(options: HostNaming = {}) {
    this.prefix = options.prefix ?? "sf-";
    this.stateDirectory = options.stateDirectory ?? "/run/snowflock/net";
    if (!/^[a-z][a-z\d]{0,6}-$/.test(this.prefix)) throw new RangeError(`${this.prefix} is no prefix of names`);
    // It is given to a shell and to `rm -r`.
    if (!/^(\/[\w.-]+){2,}$/.test(this.stateDirectory) || this.stateDirectory.includes("/..")) {
      throw new RangeError(`${this.stateDirectory} is no folder for state`);
    }
  }

  of(vni: number): NetworkNames {
    const suffix = vni.toString(16).padStart(6, "0");
    const namespace = `${this.prefix}${suffix}`;
    return {
      namespace,
      uplink: `${this.prefix}u${suffix}`,
      uplinkPrefix: `${this.prefix}u`,
      hostTable: namespace.replace("-", "_"),
      directory: `${this.stateDirectory}/${namespace}`,
    };
  }

  /** The VXLAN id in one of this host's names, or undefined for any other name. */
  vniOf(name: string): number | undefined {
    for (const start of [this.prefix, `${this.prefix}u`, this.prefix.replace("-", "_")]) {
      const rest = name.startsWith(start) ? name.slice(start.length) : "";
      if (/^[\da-f]{6}$/.test(rest)) return parseInt(rest, 16);
    }
    return undefined;
  }
}
