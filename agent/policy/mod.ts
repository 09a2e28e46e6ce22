/** Who places clones: see README.md. */
import type { Config } from "../config/mod.ts";
import { pack, type Placement } from "../fork/placement.ts";
import { external } from "./external.ts";
import { slurm } from "./slurm.ts";
import { spread } from "./spread.ts";

export { external } from "./external.ts";
export { slurm, type SlurmOptions } from "./slurm.ts";
export { spread } from "./spread.ts";

/** The policy that a config names. */
export function policyOf(policy: Config["cluster"]["policy"]): Placement {
  if (typeof policy === "object") return external(policy.command);
  return { pack, spread, slurm: slurm() }[policy];
}
