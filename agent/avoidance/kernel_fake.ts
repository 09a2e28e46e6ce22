/**
 * A Linux guest's memory made by hand for tests: page tables of either depth, BTF, nodes, zones and free lists, in an image of a
 * few megabytes. Struct layouts are this file's own, so that nothing can pass by knowing a real kernel's.
 */
import type { Gfn } from "../../hypercall/ports.ts";
import { BtfBuilder } from "./btf_fake.ts";
import type { GuestMemory } from "./guest_memory.ts";

const PAGE = 4096;
export const PAGE_STRUCT_BYTES = 64;
const LIST = 16, ORDER = 32;
export const ORDERS = 11;
export const TYPES = 6;
export const ZONES = 4;
const AREA_BYTES = TYPES * 16 + 16, AREA_LISTS = 8;
const ZONE_NAME = 16, ZONE_START = 24, ZONE_SPAN = 32, ZONE_AREAS = 48;
const ZONE_BYTES = ZONE_AREAS + ORDERS * AREA_BYTES + 16;
const NODE_ZONES = 64, NODE_ID = 8, NODE_BYTES = NODE_ZONES + ZONES * ZONE_BYTES;
export const NODES = 16;

export interface FreeBlock {
  readonly node: number;
  readonly zone: number;
  readonly order: number;
  readonly type: number;
  readonly pfn: number;
}

export interface FakeKernelOptions {
  readonly levels?: 4 | 5;
  /** Pages that one entry of the page structs' mapping covers: 4 KiB, 2 MiB or 1 GiB. */
  readonly leaf?: 1 | 512 | 262144;
  /** The image's frames, from 0 on; a multiple of 512, at least 2,048. */
  readonly frames?: number;
  readonly blocks: readonly FreeBlock[];
  /** More types than needed, as in a real kernel. */
  readonly moreTypes?: number;
  readonly numa?: boolean;
}

/** Virtual addresses of this kernel's things. */
const IMAGE = 0xffffffff82000000n;
const DIRECT = { 4: 0xffff888000000000n, 5: 0xff11000000000000n };
const VMEMMAP = { 4: 0xffffeaab40000000n, 5: 0xffd4000080000000n };

export class FakeKernel implements GuestMemory {
  readonly image: Uint8Array<ArrayBuffer>;
  readonly view: DataView;
  readonly frames: number;
  readonly cr3: bigint;
  readonly cr4: bigint;
  readonly symbols: Map<string, bigint>;
  readonly map: { readonly ranges: readonly { first: Gfn; pages: number }[]; readonly pages: number };
  /** Frames that were asked for. */
  readonly asked = new Set<bigint>();
  readonly btf: Uint8Array<ArrayBuffer>;
  /** Frame of the first page struct. */
  readonly structsFrame: number;
  readonly #levels: 4 | 5;
  #nextFrame = 1;

  constructor(options: FakeKernelOptions) {
    const { levels = 4, leaf = 1, frames = 2048, blocks, numa = true } = options;
    this.#levels = levels;
    this.frames = frames;
    this.image = new Uint8Array(frames * PAGE);
    this.view = new DataView(this.image.buffer);
    this.cr4 = levels === 5 ? 1n << 12n : 0x6f0n;
    // A hole as PCs have one: its frames are no RAM, and hold tables and data here that no list may name.
    this.map = {
      ranges: [{ first: 0n as Gfn, pages: 0x9f }, { first: 0x100n as Gfn, pages: frames - 0x100 }],
      pages: frames - 0x100 + 0x9f,
    };
    const root = this.#frame();
    this.cr3 = BigInt(root * PAGE);

    // The array of page structs: at a multiple of the leaf for 2 MiB, at an offset in it for 1 GiB.
    const structPages = frames * PAGE_STRUCT_BYTES / PAGE;
    this.structsFrame = 512;
    if (structPages > 512 || leaf === 262144 && frames > 262144) {
      throw new RangeError("an image too large for the fake");
    }
    const base = VMEMMAP[levels] + (leaf === 262144 ? BigInt(this.structsFrame * PAGE) : 0n);
    if (leaf === 1) {
      for (let at = 0; at < structPages; at++) this.#mapPage(base + BigInt(at * PAGE), this.structsFrame + at, 1);
    } else this.#mapPage(VMEMMAP[levels], leaf === 512 ? this.structsFrame : 0, leaf);

    // The kernel's image: variables in one page, the array of nodes, then the BTF; nodes lie in the direct mapping.
    this.btf = describe(options.moreTypes ?? 0);
    const image = IMAGE;
    const imageFrame = 0x400 + 64;
    const imagePages = 1 + Math.ceil((this.btf.length + 12) / PAGE);
    if (imageFrame + imagePages > frames - 64) throw new RangeError("an image too small for the fake's BTF");
    for (let at = 0; at < imagePages; at++) this.#mapPage(image + BigInt(at * PAGE), imageFrame + at, 1);
    const btfAt = image + BigInt(PAGE + 12);
    this.image.set(this.btf, (imageFrame + 1) * PAGE + 12);
    this.u64(imageFrame * PAGE + 8, base);

    const nodeCount = Math.max(0, ...blocks.map(({ node }) => node)) + 1;
    const nodePages = Math.ceil(NODE_BYTES / PAGE);
    const nodeAddresses: bigint[] = [];
    for (let node = 0; node < nodeCount; node++) {
      const frame = frames - 64 + node * nodePages;
      for (let at = 0; at < nodePages; at++) this.#mapPage(this.#direct(frame + at), frame + at, 1);
      nodeAddresses.push(this.#direct(frame));
      this.u64(imageFrame * PAGE + 64 + 8 * node, this.#direct(frame));
      this.#writeNode(frame, node, base, blocks.filter((block) => block.node === node), image);
    }
    this.image.set(new TextEncoder().encode("Normal\0"), imageFrame * PAGE + 512);
    this.symbols = new Map([
      ["__start_BTF", btfAt],
      ["__stop_BTF", btfAt + BigInt(this.btf.length)],
      ["vmemmap_base", image + 8n],
      numa ? ["node_data", image + 64n] : ["contig_page_data", nodeAddresses[0] ?? 0n],
    ]);
  }

  read(gfn: Gfn): Uint8Array | undefined {
    this.asked.add(gfn);
    if (gfn < 0n || gfn >= BigInt(this.frames)) return undefined;
    return this.image.subarray(Number(gfn) * PAGE, (Number(gfn) + 1) * PAGE);
  }

  u64(at: number, value: bigint): void {
    this.view.setBigUint64(at, BigInt.asUintN(64, value), true);
  }

  /** Image offset of a page struct's link, order and of the list head of a block. */
  linkAt(pfn: number): number {
    return this.structsFrame * PAGE + pfn * PAGE_STRUCT_BYTES + LIST;
  }

  orderAt(pfn: number): number {
    return this.structsFrame * PAGE + pfn * PAGE_STRUCT_BYTES + ORDER;
  }

  zoneAt(node: number, zone: number): number {
    const frame = this.frames - 64 + node * Math.ceil(NODE_BYTES / PAGE);
    return frame * PAGE + NODE_ZONES + zone * ZONE_BYTES;
  }

  headAt(node: number, zone: number, order: number, type: number): number {
    return this.zoneAt(node, zone) + ZONE_AREAS + order * AREA_BYTES + AREA_LISTS + 16 * type;
  }

  countAt(node: number, zone: number, order: number): number {
    return this.zoneAt(node, zone) + ZONE_AREAS + order * AREA_BYTES;
  }

  nodeIdAt(node: number): number {
    return this.zoneAt(node, 0) - NODE_ZONES + NODE_ID;
  }

  spanAt(node: number, zone: number): number {
    return this.zoneAt(node, zone) + ZONE_SPAN;
  }

  #direct(frame: number): bigint {
    return DIRECT[this.#levels] + BigInt(frame * PAGE);
  }

  /** A frame for a page table, below the first MiB. */
  #frame(): number {
    if (this.#nextFrame >= 0x100) throw new RangeError("too many page tables for the fake");
    return this.#nextFrame++;
  }

  /** Maps `pages` pages (one leaf) at `address` to `frame`. */
  #mapPage(address: bigint, frame: number, pages: 1 | 512 | 262144): void {
    const leafLevel = pages === 1 ? 0 : pages === 512 ? 1 : 2;
    let table = Number(this.cr3) / PAGE;
    for (let level = this.#levels - 1; level > leafLevel; level--) {
      const at = table * PAGE + Number(address >> BigInt(12 + 9 * level) & 511n) * 8;
      const entry = this.view.getBigUint64(at, true);
      if (entry === 0n) {
        table = this.#frame();
        this.u64(at, BigInt(table * PAGE) | 0x63n);
      } else table = Number(entry >> 12n);
    }
    const at = table * PAGE + Number(address >> BigInt(12 + 9 * leafLevel) & 511n) * 8;
    // No-execute, global, dirty, accessed, present; and the large-page bit.
    this.u64(at, 1n << 63n | BigInt(frame * PAGE) | 0x163n | (leafLevel > 0 ? 0x80n : 0n));
  }

  #writeNode(
    frame: number,
    node: number,
    base: bigint,
    blocks: readonly FreeBlock[],
    image: bigint,
  ) {
    const at = frame * PAGE;
    this.view.setUint32(at + NODE_ID, node, true);
    for (let zone = 0; zone < ZONES; zone++) {
      const mine = blocks.filter((block) => block.zone === zone);
      const zoneAt = at + NODE_ZONES + zone * ZONE_BYTES;
      this.u64(zoneAt + ZONE_NAME, image + 512n);
      // A zone without memory has list heads of zeros.
      if (mine.length === 0) continue;
      this.u64(zoneAt + ZONE_SPAN, BigInt(this.frames));
      for (let order = 0; order < ORDERS; order++) {
        const area = zoneAt + ZONE_AREAS + order * AREA_BYTES;
        const ofOrder = mine.filter((block) => block.order === order);
        this.u64(area, BigInt(ofOrder.length));
        for (let type = 0; type < TYPES; type++) {
          const head = area + AREA_LISTS + 16 * type;
          this.#link(
            head,
            this.#direct(frame) + BigInt(head - at),
            base,
            ofOrder.filter((block) => block.type === type),
          );
        }
      }
    }
  }

  #link(headAt: number, head: bigint, base: bigint, blocks: readonly FreeBlock[]): void {
    const address = (pfn: number) => base + BigInt(pfn * PAGE_STRUCT_BYTES + LIST);
    let before = head;
    let beforeAt = headAt;
    for (const { pfn, order } of blocks) {
      this.u64(beforeAt, address(pfn));
      this.u64(this.linkAt(pfn) + 8, before);
      this.u64(this.orderAt(pfn), BigInt(order));
      before = address(pfn);
      beforeAt = this.linkAt(pfn);
    }
    this.u64(beforeAt, head);
    this.u64(headAt + 8, before);
  }
}

/** The BTF of the structs above. */
function describe(moreTypes: number): Uint8Array<ArrayBuffer> {
  const btf = new BtfBuilder();
  const long = btf.int("unsigned long", 8);
  const int = btf.int("int", 4);
  for (let at = 0; at < moreTypes; at++) btf.struct(`other_${at}`, 8, [["value", long, 0]]);
  const pointer = btf.pointer(0);
  const listHead = btf.struct("list_head", 16, [["next", pointer, 0], ["prev", pointer, 8]]);
  const links = btf.union("", 16, [["lru", listHead, 0], ["buddy_list", listHead, 0]]);
  const inner = btf.struct("", 32, [["", links, 8], ["private", long, ORDER - 8]]);
  btf.struct("page", PAGE_STRUCT_BYTES, [["flags", long, 0], ["", btf.union("", 32, [["", inner, 0]]), 8]]);
  const area = btf.struct("free_area", AREA_BYTES, [["free_list", btf.array(listHead, TYPES), AREA_LISTS], [
    "nr_free",
    long,
    0,
  ]]);
  const zone = btf.struct("zone", ZONE_BYTES, [
    ["name", btf.pointer(int), ZONE_NAME],
    ["zone_start_pfn", btf.typedef("pfn_t", long), ZONE_START],
    ["spanned_pages", long, ZONE_SPAN],
    ["free_area", btf.array(area, ORDERS), ZONE_AREAS],
  ]);
  const zoneref = btf.struct("zoneref", 16, [["zone", pointer, 0]]);
  const zonelist = btf.struct("zonelist", 16, [["_zonerefs", btf.array(zoneref, NODES * ZONES + 1), 0]]);
  btf.struct("pglist_data", NODE_BYTES, [
    ["node_zones", btf.array(btf.typedef("zone_t", zone), ZONES), NODE_ZONES],
    ["node_zonelists", btf.array(zonelist, 2), 16],
    ["node_id", int, NODE_ID],
  ]);
  return btf.bytes();
}
