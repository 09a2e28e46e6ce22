/** Other hosts. See README.md. */
export { missingFeatures } from "./cpu.ts";
export type { HostHere } from "./guests.ts";
export { type HostFiles, keygen, type Keys } from "./keygen.ts";
export type { PeerState } from "./link.ts";
export { type HereParts, Peers, type PeersOptions, type PeersParts, startPeers } from "./start.ts";
export { loadTls, type TlsFiles, type TlsIdentity } from "./tls.ts";
export { PeerError, type PeerErrorCode, PROTOCOL } from "./wire.ts";
