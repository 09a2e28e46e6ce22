/** The fake guest that most tests of the walk use. */
import assert from "node:assert/strict";
import { FakeKernel, type FakeKernelOptions, type FreeBlock } from "./kernel_fake.ts";
import { KernelLayouts, readLayout } from "./layout.ts";
import type { WalkQuery } from "./walk.ts";

/** Disjoint free blocks in three zones. */
export const BLOCKS: readonly FreeBlock[] = [
  { node: 0, zone: 0, order: 0, type: 0, pfn: 0x11 },
  { node: 0, zone: 0, order: 3, type: 1, pfn: 0x20 },
  { node: 0, zone: 1, order: 0, type: 0, pfn: 0x301 },
  { node: 0, zone: 1, order: 0, type: 0, pfn: 0x7ff },
  { node: 0, zone: 1, order: 0, type: 0, pfn: 0x9e },
  { node: 0, zone: 1, order: 0, type: 5, pfn: 0x302 },
  { node: 0, zone: 1, order: 1, type: 2, pfn: 0x304 },
  { node: 0, zone: 1, order: 9, type: 1, pfn: 0x400 },
  { node: 0, zone: 2, order: 8, type: 0, pfn: 0x100 },
];

/** The fake, and a query for it with the layout that its BTF tells. */
export function fake(options: Partial<FakeKernelOptions> = {}): { kernel: FakeKernel; query: WalkQuery } {
  const kernel = new FakeKernel({ blocks: BLOCKS, ...options });
  const registers = { cr3: kernel.cr3, cr4: kernel.cr4, symbols: kernel.symbols };
  const read = readLayout(kernel, { ...registers, budget: { frames: 4096 } }, new KernelLayouts());
  assert.ok(read.ok, read.ok ? "" : `${read.reason}: ${read.detail}`);
  kernel.asked.clear();
  return { kernel, query: { ...registers, layout: read.layout, map: kernel.map } };
}
