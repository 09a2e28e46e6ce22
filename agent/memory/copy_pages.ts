import type { Domid, ForeignMemoryPort } from "../../hypercall/ports.ts";
import { PAGE_BYTES } from "../../hypercall/ports.ts";
import type { MemoryMap } from "./memory_map.ts";
import type { PageArena, Slot } from "./page_arena.ts";
import type { Snapshot } from "./snapshot.ts";

/** Frames that are mapped at a time. */
const MAP_BATCH = 256;

/**
 * Copies pages of a domain into the arena. `take` gets each page's slot, or undefined where the domain has no page; it
 * retains the slot if it wants it. Throws {@link ArenaFull}.
 */
export function copyPages(
  foreignMemory: ForeignMemoryPort,
  arena: PageArena,
  domid: Domid,
  map: MemoryMap,
  indexes: Uint32Array,
  take: (index: number, slot: Slot | undefined) => void,
): void {
  for (let at = 0; at < indexes.length; at += MAP_BATCH) {
    const batch = indexes.subarray(at, at + MAP_BATCH);
    using mapping = foreignMemory.map(domid, map.gfnsOf(batch), { write: false });
    batch.forEach((index, frame) => {
      if (mapping.errors[frame] !== 0) return take(index, undefined);
      const slot = arena.take();
      try {
        const offset = frame * PAGE_BYTES;
        arena.bytes(slot).set(mapping.bytes.subarray(offset, offset + PAGE_BYTES));
        take(index, slot);
      } finally {
        arena.release(slot);
      }
    });
  }
}

/** Copies what only the owner's frames have of a snapshot, so that its clones outlive the owner. Throws {@link ArenaFull}. */
export function saveLive(foreignMemory: ForeignMemoryPort, arena: PageArena, snapshot: Snapshot): void {
  copyPages(foreignMemory, arena, snapshot.owner, snapshot.map, snapshot.liveIndexes(), (index, slot) => {
    if (slot === undefined) snapshot.markZero(index);
    else snapshot.save(index, slot);
  });
}
