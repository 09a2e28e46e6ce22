/**
 * The type information that a Linux kernel carries (BTF; Documentation/bpf/btf.rst, include/uapi/linux/btf.h): enough of it to
 * ask for the offset of a member. A kernel's has 100,000 types in 4 MB; one pass notes where each type starts, and only the few
 * that are asked for are looked into.
 */
import { Buffer } from "node:buffer";
import { Refusal } from "./refusal.ts";

const MAGIC = 0xeb9f;
const HEADER_BYTES = 24;
/** Four times what Debian's kernels have. */
export const MAX_BTF_BYTES = 1 << 24;
const MAX_TYPES = 1 << 20;
const NAMED_TYPE_BYTES = 12;

const INT = 1, POINTER = 2, ARRAY = 3, STRUCT = 4, UNION = 5;
const TYPEDEF = 8, VOLATILE = 9, CONST = 10, RESTRICT = 11, TYPE_TAG = 18;
const ENUM = 6, ENUM64 = 19, FLOAT = 16;

/** By kind: bytes after a type's head, fixed and per element (`vlen`). A kind that is not here is not known. */
const EXTRA_BYTES: readonly (readonly [number, number] | undefined)[] = [
  undefined,
  [4, 0], // int
  [0, 0],
  [12, 0], // array
  [0, 12], // struct
  [0, 12], // union
  [0, 8], // enum
  [0, 0],
  [0, 0],
  [0, 0],
  [0, 0],
  [0, 0],
  [0, 0],
  [0, 8], // function prototype
  [4, 0], // variable
  [0, 12], // data section
  [0, 0],
  [4, 0], // declaration tag
  [0, 0],
  [0, 12], // enum64
];

/** Chains of typedefs and qualifiers, and anonymous structs within structs, are short. */
const MAX_CHAIN = 16;
const MAX_DEPTH = 6;
const MAX_MEMBERS_SEEN = 20_000;
const POINTER_BYTES = 8;

export interface Member {
  readonly byteOffset: number;
  readonly type: number;
}

export interface ArrayType {
  readonly element: number;
  readonly count: number;
}

function bad(detail: string): never {
  throw new Refusal("btf", detail);
}

export class Btf {
  /** The whole section as 32-bit words. */
  readonly #words: Uint32Array;
  readonly #strings: Uint8Array;
  /** Per type its first word. Type 0 is void. */
  readonly #starts: Uint32Array;
  readonly types: number;

  /** Throws a {@link Refusal} unless `bytes` are BTF from end to end. */
  constructor(bytes: Uint8Array<ArrayBuffer>) {
    if (bytes.length < HEADER_BYTES || bytes.length > MAX_BTF_BYTES) bad(`a section of ${bytes.length} bytes`);
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    const headerBytes = view.getUint32(4, true);
    if (view.getUint16(0, true) !== MAGIC || view.getUint8(2) !== 1) bad("not BTF of version 1");
    const typesAt = headerBytes + view.getUint32(8, true);
    const typeBytes = view.getUint32(12, true);
    const stringsAt = headerBytes + view.getUint32(16, true);
    const stringBytes = view.getUint32(20, true);
    if (headerBytes < HEADER_BYTES || typesAt % 4 !== 0 || typeBytes % 4 !== 0) bad("a header of another kind");
    if (typesAt + typeBytes > bytes.length || stringsAt + stringBytes > bytes.length) bad("sections beyond the end");
    const whole = bytes.byteOffset % 4 === 0 ? bytes : bytes.slice();
    this.#words = new Uint32Array(whole.buffer, whole.byteOffset, whole.byteLength >> 2);
    this.#strings = bytes.subarray(stringsAt, stringsAt + stringBytes);
    const starts = new Uint32Array(Math.min(typeBytes / NAMED_TYPE_BYTES + 1, MAX_TYPES + 1));
    let count = 1;
    let at = typesAt / 4;
    const end = (typesAt + typeBytes) / 4;
    while (at < end) {
      if (at + 3 > end) bad("a type that is cut short");
      if (count > MAX_TYPES) bad(`more than ${MAX_TYPES} types`);
      starts[count++] = at;
      const info = this.#words[at + 1] ?? 0;
      const extra = EXTRA_BYTES[info >>> 24 & 31];
      if (extra === undefined) bad(`a type of kind ${info >>> 24 & 31}`);
      at += 3 + (extra[0] + extra[1] * (info & 0xffff)) / 4;
    }
    if (at !== end) bad("types beyond their section");
    this.#starts = starts;
    this.types = count;
  }

  /** The first struct of this name that has members. Throws a layout refusal where there is none. */
  struct(name: string): number {
    const wanted = this.#nameOffset(name);
    for (let type = 1; wanted !== undefined && type < this.types; type++) {
      const at = this.#starts[type] ?? 0;
      const info = this.#words[at + 1] ?? 0;
      if (this.#words[at] === wanted && (info >>> 24 & 31) === STRUCT && (info & 0xffff) > 0) return type;
    }
    throw new Refusal("layout", `there is no struct ${name}`);
  }

  /** The member `name` of a struct, also where it lies in anonymous structs and unions of it. */
  member(struct: number, name: string): Member {
    const wanted = this.#nameOffset(name);
    const budget = { left: MAX_MEMBERS_SEEN };
    const found = wanted === undefined ? undefined : this.#find(struct, wanted, MAX_DEPTH, budget);
    if (found === undefined) throw new Refusal("layout", `there is no member ${name}`);
    return found;
  }

  array(type: number): ArrayType {
    const at = this.#resolve(type);
    if (this.#kind(at) !== ARRAY) throw new Refusal("layout", `type ${type} is no array`);
    return { element: this.#words[at + 3] ?? 0, count: this.#words[at + 5] ?? 0 };
  }

  /** Bytes of a type. */
  size(type: number): number {
    let count = 1;
    for (let depth = 0; depth < MAX_DEPTH; depth++) {
      const at = this.#resolve(type);
      const kind = this.#kind(at);
      if (kind === POINTER) return count * POINTER_BYTES;
      if ([INT, STRUCT, UNION, ENUM, ENUM64, FLOAT].includes(kind)) return count * (this.#words[at + 2] ?? 0);
      if (kind !== ARRAY) break;
      type = this.#words[at + 3] ?? 0;
      count *= this.#words[at + 5] ?? 0;
    }
    throw new Refusal("layout", `type ${type} has no size`);
  }

  /** Names are stored once each, between zero bytes. */
  #nameOffset(name: string): number | undefined {
    const pattern = new TextEncoder().encode(`\0${name}\0`);
    const { buffer, byteOffset, byteLength } = this.#strings;
    const at = Buffer.from(buffer, byteOffset, byteLength).indexOf(pattern);
    return at < 0 ? undefined : at + 1;
  }

  #find(type: number, wanted: number, depth: number, budget: { left: number }): Member | undefined {
    const start = this.#resolve(type);
    const info = this.#words[start + 1] ?? 0;
    const kind = info >>> 24 & 31;
    if (kind !== STRUCT && kind !== UNION) return undefined;
    for (let index = 0; index < (info & 0xffff); index++) {
      if (--budget.left < 0) bad("structs with too many members");
      const at = start + 3 + 3 * index;
      const name = this.#words[at] ?? 0;
      const inner = this.#words[at + 1] ?? 0;
      // With the kind flag the upper byte is a bit field's width.
      const bits = info >>> 31 === 1 ? (this.#words[at + 2] ?? 0) & 0xffffff : this.#words[at + 2] ?? 0;
      if (name === wanted) {
        if (bits % 8 !== 0) throw new Refusal("layout", "a bit field where none was expected");
        return { byteOffset: bits / 8, type: inner };
      }
      if (name === 0 && depth > 0) {
        const found = this.#find(inner, wanted, depth - 1, budget);
        if (found !== undefined) return { byteOffset: bits / 8 + found.byteOffset, type: found.type };
      }
    }
    return undefined;
  }

  /** The first word of the type behind typedefs and qualifiers. */
  #resolve(type: number): number {
    for (let step = 0; step < MAX_CHAIN; step++) {
      if (type === 0 || type >= this.types) bad(`there is no type ${type}`);
      const at = this.#starts[type] ?? 0;
      const kind = this.#kind(at);
      if (![TYPEDEF, VOLATILE, CONST, RESTRICT, TYPE_TAG].includes(kind)) return at;
      type = this.#words[at + 2] ?? 0;
    }
    return bad("a chain of types without end");
  }

  #kind(at: number): number {
    return (this.#words[at + 1] ?? 0) >>> 24 & 31;
  }
}
