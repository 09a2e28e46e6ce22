/** What a distribution counts, of all families. */
export interface Counters {
  receivedPackets: number;
  receivedBytes: number;
  /** Dropped: not of this protocol; of a family that is not open; own packets that came back; seen before; forged; nonsense under a good seal. */
  notOurs: number;
  unknownFamily: number;
  own: number;
  replayed: number;
  forged: number;
  malformed: number;
  /** Of an object that is not wanted or served here. */
  unknownObject: number;
  /** Blocks that came though they were here, and blocks a compressed form of which was broken. */
  duplicates: number;
  undecodable: number;
  blocksReceived: number;
  zeroReceived: number;
  absentReceived: number;
  blocksSent: number;
  zeroSent: number;
  absentSent: number;
  /** Blocks that the source has only later. */
  deferred: number;
}

export function newCounters(): Counters {
  return {
    receivedPackets: 0,
    receivedBytes: 0,
    notOurs: 0,
    unknownFamily: 0,
    own: 0,
    replayed: 0,
    forged: 0,
    malformed: 0,
    unknownObject: 0,
    duplicates: 0,
    undecodable: 0,
    blocksReceived: 0,
    zeroReceived: 0,
    absentReceived: 0,
    blocksSent: 0,
    zeroSent: 0,
    absentSent: 0,
    deferred: 0,
  };
}
