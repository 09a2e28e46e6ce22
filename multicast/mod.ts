/** Distribution of blocks (memory pages, disk blocks) to the hosts of a family. See README.md. */
export type { Compression } from "./compression.ts";
export {
  DEFAULT_OPTIONS,
  Distribution,
  type DistributionOptions,
  type DistributionPorts,
  type FamilyOptions,
  type WantedOptions,
} from "./distribution.ts";
export { nodeSealer } from "./node_sealer.ts";
export { DEFAULT_PACE, type PaceOptions } from "./pace.ts";
export type {
  BlockSink,
  BlockSource,
  DatagramSocket,
  Outgoing,
  Packet,
  PinnedAllocator,
  ReceivedBlock,
  Sealer,
  SealerFactory,
  SendResult,
} from "./ports.ts";
export { BLOCK_BYTES, type Endpoint, formatEndpoint, type Id, parseEndpoint, parseId } from "./protocol.ts";
export { DEFAULT_RECEIVER, type ReceiverOptions } from "./receiver.ts";
