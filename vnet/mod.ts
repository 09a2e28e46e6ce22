/** A private network for every family of clones: see README.md. */
export { AddressError } from "./addresses.ts";
export { CommandError, type CommandOptions, type CommandResult, type CommandRunner } from "./commands.ts";
export {
  FamilyNetwork,
  FamilyNetworkError,
  type FamilyNetworkOptions,
  type ShownMember,
  type ShownNetwork,
} from "./family_network.ts";
export { type GuestIdentity, guestIdentity } from "./identity.ts";
export {
  AddressPlan,
  DEFAULT_RANGES,
  type Family,
  type FamilyPlan,
  type FleetRanges,
  type MemberAddresses,
  PlanRangeError,
  type VniRange,
} from "./plan.ts";
export { allocateVni, LocalRegistry, type Registry, sliceOf } from "./registry.ts";
export { type SealedPeer, type SealKey, UnderlaySeal } from "./seal.ts";
export {
  DEFAULT_MTU,
  type Egress,
  type EgressRule,
  type NetworkOptions,
  type Settings,
  SettingsError,
  type Underlay,
} from "./settings.ts";
