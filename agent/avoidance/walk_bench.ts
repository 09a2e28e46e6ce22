/**
 * What the walk costs: `deno bench -A agent/avoidance`. A guest of 128 MiB whose free pages are scattered (every second page, in random
 * order: as bad as lists get), one with large blocks, and the parse of a kernel's BTF.
 */
import { FakeKernel, type FreeBlock } from "./kernel_fake.ts";
import { KernelLayouts, readLayout } from "./layout.ts";
import { walkFreePages, type WalkQuery } from "./walk.ts";

const FRAMES = 32768;

function prepare(blocks: readonly FreeBlock[]): { kernel: FakeKernel; query: WalkQuery } {
  const kernel = new FakeKernel({ blocks, frames: FRAMES, leaf: 512 });
  const registers = { cr3: kernel.cr3, cr4: kernel.cr4, symbols: kernel.symbols };
  const read = readLayout(kernel, { ...registers, budget: { frames: 8192 } }, new KernelLayouts());
  if (!read.ok) throw new Error(read.detail);
  return { kernel, query: { ...registers, layout: read.layout, map: kernel.map } };
}

function scattered(): FreeBlock[] {
  const pfns = Array.from({ length: (FRAMES - 0x100) / 2 }, (_, at) => 0x100 + 2 * at);
  let state = 12345;
  for (let at = pfns.length - 1; at > 0; at--) {
    state = Math.imul(state, 1103515245) + 12345 >>> 0;
    const other = state % (at + 1);
    const pfn = pfns[at] ?? 0;
    pfns[at] = pfns[other] ?? 0;
    pfns[other] = pfn;
  }
  return pfns.map((pfn) => ({ node: 0, zone: 1, order: 0, type: 1, pfn }));
}

const worst = prepare(scattered());
const fresh = prepare(
  Array.from(
    { length: FRAMES / 1024 - 1 },
    (_, at) => ({ node: 0, zone: 1, order: 10, type: 1, pfn: 1024 * (at + 1) }),
  ),
);

Deno.bench("walk, 16,256 scattered free pages of 32,768", () => {
  if (!walkFreePages(worst.kernel, worst.query).ok) throw new Error("refused");
});

Deno.bench("walk, 31 free blocks of 1,024 pages", () => {
  if (!walkFreePages(fresh.kernel, fresh.query).ok) throw new Error("refused");
});

const btf = new Deno.Command("cat", { args: ["/sys/kernel/btf/vmlinux"], stderr: "null" }).outputSync().stdout;

Deno.bench({ name: "layout from this machine's BTF, parsed anew", ignore: btf.length === 0 }, () => {
  new KernelLayouts().of(btf);
});
