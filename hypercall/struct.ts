/**
 * C structs, declared once: from the fields' kinds, in order, come the layout (the padding rules of the x86-64 System V ABI),
 * an encoder, a decoder, a live view of bytes, and the static types of all three.
 *
 *     export const PagingOp = struct("xen_mem_paging_op", { op: "u8", domain: "u16", buffer: "u64", gfn: "u64" });
 *     PagingOp.encode({ op: 2, domain: 7, gfn: 0x1234n }); // 24 bytes; what is left out is zero
 *     PagingOp.view(bytes).gfn += 1n;
 *
 * Everything is little-endian.
 */
import { type FieldCodec, fieldCodec } from "./struct_field.ts";

/** Integers up to 32 bits are numbers, those of 64 bits are bigints. */
export type Integer = "u8" | "u16" | "u32" | "u64" | "i16" | "i32" | "i64";

/** `uint8_t name[length]`, or a union shown as its bytes (then with the union's own alignment). */
export interface BytesField {
  readonly kind: "bytes";
  readonly length: number;
  readonly alignment: number;
}

/** `element name[length]`. */
export interface ArrayField<E extends Integer | AnyStruct = Integer | AnyStruct> {
  readonly kind: "array";
  readonly element: E;
  readonly length: number;
}

/** What every {@link Struct} has, whatever its fields. */
export interface AnyStruct {
  readonly kind: "struct";
  readonly name: string;
  readonly fields: Fields;
  readonly size: number;
  readonly alignment: number;
}

export type Field = Integer | BytesField | ArrayField | AnyStruct;
export interface Fields {
  readonly [name: string]: Field;
}

type IntegerValue<K extends Integer> = K extends "u64" | "i64" ? bigint : number;

type FieldValue<F extends Field> = F extends Integer ? IntegerValue<F>
  : F extends BytesField ? Uint8Array
  : F extends ArrayField<infer E> ? readonly FieldValue<E>[]
  : F extends { readonly kind: "struct"; readonly fields: infer N extends Fields } ? StructValue<N>
  : never;

type FieldInit<F extends Field> = F extends Integer ? IntegerValue<F>
  : F extends BytesField ? Uint8Array
  : F extends ArrayField<infer E> ? readonly FieldInit<E>[]
  : F extends { readonly kind: "struct"; readonly fields: infer N extends Fields } ? StructInit<N>
  : never;

type FieldView<F extends Field> = F extends Integer ? IntegerValue<F>
  : F extends BytesField ? Uint8Array
  : F extends ArrayField<infer E> ? readonly FieldView<E>[]
  : F extends { readonly kind: "struct"; readonly fields: infer N extends Fields } ? StructView<N>
  : never;

/** A decoded struct. */
export type StructValue<F extends Fields> = { readonly [K in keyof F]: FieldValue<F[K]> };
/** What `encode` takes: as in C's designated initialisers, what is left out is zero. */
export type StructInit<F extends Fields> = { readonly [K in keyof F]?: FieldInit<F[K]> };
/**
 * Bytes seen as the struct: reading a property reads the bytes, setting one writes them. Byte fields and nested structs are views
 * too (setting one copies into place); an array is read as a copy (of views, for structs) and set as a whole.
 */
export type StructView<F extends Fields> = { -readonly [K in keyof F]: FieldView<F[K]> };

export type ValueOf<S> = S extends Struct<infer F> ? StructValue<F> : never;
export type InitOf<S> = S extends Struct<infer F> ? StructInit<F> : never;
export type ViewOf<S> = S extends Struct<infer F> ? StructView<F> : never;

export interface Struct<F extends Fields> extends AnyStruct {
  readonly fields: F;
  readonly offsets: { readonly [K in keyof F]: number };
  /** Throws a RangeError for a value that its field cannot hold. */
  encode(value: StructInit<F>): Uint8Array<ArrayBuffer>;
  /** The same into place: all `size` bytes are written. */
  encodeInto(value: StructInit<F>, bytes: Uint8Array, offset?: number): void;
  /** A copy. Throws a RangeError for too few bytes. */
  decode(bytes: Uint8Array, offset?: number): StructValue<F>;
  view(bytes: Uint8Array, offset?: number): StructView<F>;
}

export function bytes(length: number, alignment = 1): BytesField {
  return { kind: "bytes", length, alignment };
}

export function array<E extends Integer | AnyStruct>(element: E, length: number): ArrayField<E> {
  return { kind: "array", element, length };
}

interface Member {
  readonly name: string;
  /** For errors: made once, because structs are encoded on hot paths. */
  readonly label: string;
  readonly offset: number;
  readonly codec: FieldCodec;
}

/** Marks a struct's own codec, for structs that nest it. */
const codecs = new WeakMap<AnyStruct, FieldCodec>();

export function struct<const F extends Fields>(name: string, fields: F): Struct<F> {
  const members: Member[] = [];
  const offsets: Record<string, number> = {};
  let end = 0;
  let alignment = 1;
  for (const [field, kind] of Object.entries(fields)) {
    const codec = fieldCodec(kind, (nested) => codecs.get(nested));
    end = roundUp(end, codec.alignment);
    members.push({ name: field, label: `${name}.${field}`, offset: end, codec });
    offsets[field] = end;
    end += codec.size;
    alignment = Math.max(alignment, codec.alignment);
  }
  const size = roundUp(end, alignment);
  const codec = new StructCodec(name, members, size, alignment);
  const dataViewOf = (bytes: Uint8Array, offset: number): DataView => {
    if (!Number.isInteger(offset) || offset < 0 || offset + size > bytes.byteLength) {
      throw new RangeError(`${name} needs ${size} bytes at ${offset}, of ${bytes.byteLength}`);
    }
    return new DataView(bytes.buffer, bytes.byteOffset + offset, size);
  };
  const encodeInto = (value: StructInit<F>, bytes: Uint8Array, offset = 0) => {
    const target = dataViewOf(bytes, offset);
    bytes.fill(0, offset, offset + size);
    codec.write(target, 0, value);
  };
  const result: Struct<F> = {
    kind: "struct",
    name,
    fields,
    size,
    alignment,
    offsets: offsets as { readonly [K in keyof F]: number },
    encode(value) {
      const bytes = new Uint8Array(size);
      encodeInto(value, bytes);
      return bytes;
    },
    encodeInto,
    decode: (bytes, offset = 0) => codec.read(dataViewOf(bytes, offset), 0) as StructValue<F>,
    view: (bytes, offset = 0) => codec.view(dataViewOf(bytes, offset), 0) as StructView<F>,
  };
  codecs.set(result, codec);
  return Object.freeze(result);
}

function roundUp(offset: number, alignment: number): number {
  return Math.ceil(offset / alignment) * alignment;
}

/** A view's bytes, out of sight of whoever uses the view. */
class Anchor {
  readonly #data: DataView;
  readonly #base: number;

  constructor(data: DataView, base: number) {
    this.#data = data;
    this.#base = base;
  }
  static get(view: Anchor, { codec, offset }: Member): unknown {
    return codec.view(view.#data, view.#base + offset);
  }
  static set(view: Anchor, { codec, offset, label }: Member, value: unknown): void {
    codec.write(view.#data, view.#base + offset, value, label);
  }
}

class StructCodec implements FieldCodec {
  readonly #members: readonly Member[];
  readonly #name: string;
  readonly #View: typeof Anchor;

  constructor(name: string, members: readonly Member[], readonly size: number, readonly alignment: number) {
    this.#name = name;
    this.#members = members;
    this.#View = viewClass(members);
  }

  read(data: DataView, base: number): unknown {
    const value: Record<string, unknown> = {};
    for (const { name, offset, codec } of this.#members) value[name] = codec.read(data, base + offset);
    return value;
  }

  write(data: DataView, base: number, value: unknown): void {
    if (typeof value !== "object" || value === null) throw new RangeError(`${this.#name} must be an object`);
    const parts = value as Readonly<Record<string, unknown>>;
    for (const { name, label, offset, codec } of this.#members) {
      const part = parts[name];
      if (part !== undefined) codec.write(data, base + offset, part, label);
    }
  }

  view(data: DataView, base: number): unknown {
    return new this.#View(data, base);
  }
}

/** Accessors are made once for a struct, not once for a view: views are made on hot paths. */
function viewClass(members: readonly Member[]): typeof Anchor {
  const View = class extends Anchor {};
  for (const member of members) {
    Object.defineProperty(View.prototype, member.name, {
      enumerable: true,
      get(this: Anchor) {
        return Anchor.get(this, member);
      },
      set(this: Anchor, value: unknown) {
        Anchor.set(this, member, value);
      },
    });
  }
  return View;
}
