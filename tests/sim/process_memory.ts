/** Memory of a simulated process: pinned pages of its own, and frames of domains mapped. */
import { type Address, type ForeignMapping, PAGE_BYTES, type PinnedMemory } from "../../hypercall/ports.ts";
import type { Frame } from "./frames.ts";
import type { SimMachine } from "./machine.ts";

export function pinnedMemory(machine: SimMachine, byteLength: number): PinnedMemory {
  const pages = Math.max(Math.ceil(byteLength / PAGE_BYTES), 1);
  const bytes = new Uint8Array(pages * PAGE_BYTES);
  const address = machine.space.add(bytes);
  const end = endOnce(machine, () => {
    machine.space.remove(address);
    // Detached: a use after this throws, as it would fault on a real host. (A killed process runs no code; its calls throw.)
    if (!machine.killed) bytes.buffer.transfer(0);
  });
  return { address, bytes, [Symbol.dispose]: end };
}

/** Undefined frames have an error, and touching them by address is a fault. */
export function foreignMapping(
  machine: SimMachine,
  frames: readonly (Frame | undefined)[],
  errors: readonly number[],
  write: boolean,
): ForeignMapping {
  const { address, bytes, end } = mapFrames(machine, frames, write);
  return { address, bytes, errors: Int32Array.from(errors), [Symbol.dispose]: end };
}

export function mapFrames(
  machine: SimMachine,
  frames: readonly (Frame | undefined)[],
  write: boolean,
): { readonly address: Address; readonly bytes: Uint8Array<ArrayBuffer>; readonly end: () => void } {
  const mapped = machine.xen.mappings.map(frames, write);
  const address = machine.space.add(mapped.bytes, (page) => frames[page] !== undefined);
  const end = endOnce(machine, () => {
    machine.space.remove(address);
    mapped.unmap({ detach: !machine.killed });
  });
  return { address, bytes: mapped.bytes, end };
}

/** Runs once: by whoever disposes of the resource, or at the end of the process. */
function endOnce(machine: SimMachine, end: () => void): () => void {
  let ended = false;
  const resource: Disposable = {
    [Symbol.dispose]() {
      if (ended) return;
      ended = true;
      held[Symbol.dispose]();
      end();
    },
  };
  const held = machine.hold(resource);
  return () => resource[Symbol.dispose]();
}
