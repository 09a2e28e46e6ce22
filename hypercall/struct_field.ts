/** How each kind of field of a {@link import("./struct.ts").struct} is read, written and viewed. */
import type { AnyStruct, Field, Integer } from "./struct.ts";

export interface FieldCodec {
  readonly size: number;
  readonly alignment: number;
  read(data: DataView, offset: number): unknown;
  /** `label` names the field in errors. */
  write(data: DataView, offset: number, value: unknown, label: string): void;
  view(data: DataView, offset: number): unknown;
}

export function fieldCodec(field: Field, structCodec: (nested: AnyStruct) => FieldCodec | undefined): FieldCodec {
  if (typeof field === "string") return INTEGERS[field];
  if (field.kind === "bytes") return bytesCodec(field.length, field.alignment);
  if (field.kind === "array") return arrayCodec(fieldCodec(field.element, structCodec), field.length);
  const codec = structCodec(field);
  if (codec === undefined) throw new TypeError(`${field.name} was not made by struct()`);
  return codec;
}

function numberCodec(
  size: number,
  minimum: number,
  maximum: number,
  read: (data: DataView, offset: number) => number,
  write: (data: DataView, offset: number, value: number) => void,
): FieldCodec {
  return {
    size,
    alignment: size,
    read,
    view: read,
    write(data, offset, value, label) {
      if (typeof value !== "number" || !Number.isInteger(value) || value < minimum || value > maximum) {
        throw new RangeError(`${label} must be an integer from ${minimum} to ${maximum}, not ${String(value)}`);
      }
      write(data, offset, value);
    },
  };
}

function bigintCodec(
  minimum: bigint,
  maximum: bigint,
  read: (data: DataView, offset: number) => bigint,
  write: (data: DataView, offset: number, value: bigint) => void,
): FieldCodec {
  return {
    size: 8,
    alignment: 8,
    read,
    view: read,
    write(data, offset, value, label) {
      if (typeof value !== "bigint" || value < minimum || value > maximum) {
        throw new RangeError(`${label} must be a bigint from ${minimum} to ${maximum}, not ${String(value)}`);
      }
      write(data, offset, value);
    },
  };
}

const INTEGERS: Readonly<Record<Integer, FieldCodec>> = {
  u8: numberCodec(1, 0, 0xff, (d, o) => d.getUint8(o), (d, o, v) => d.setUint8(o, v)),
  u16: numberCodec(2, 0, 0xffff, (d, o) => d.getUint16(o, true), (d, o, v) => d.setUint16(o, v, true)),
  u32: numberCodec(4, 0, 0xffff_ffff, (d, o) => d.getUint32(o, true), (d, o, v) => d.setUint32(o, v, true)),
  i16: numberCodec(2, -0x8000, 0x7fff, (d, o) => d.getInt16(o, true), (d, o, v) => d.setInt16(o, v, true)),
  i32: numberCodec(4, -0x8000_0000, 0x7fff_ffff, (d, o) => d.getInt32(o, true), (d, o, v) => d.setInt32(o, v, true)),
  u64: bigintCodec(
    0n,
    (1n << 64n) - 1n,
    (d, o) => d.getBigUint64(o, true),
    (d, o, v) => d.setBigUint64(o, v, true),
  ),
  i64: bigintCodec(
    -(1n << 63n),
    (1n << 63n) - 1n,
    (d, o) => d.getBigInt64(o, true),
    (d, o, v) => d.setBigInt64(o, v, true),
  ),
};

function bytesCodec(length: number, alignment: number): FieldCodec {
  const window = (data: DataView, offset: number) => new Uint8Array(data.buffer, data.byteOffset + offset, length);
  return {
    size: length,
    alignment,
    read: (data, offset) => window(data, offset).slice(),
    view: window,
    write(data, offset, value, label) {
      if (!(value instanceof Uint8Array) || value.byteLength > length) {
        throw new RangeError(`${label} must be at most ${length} bytes`);
      }
      const target = window(data, offset);
      target.set(value);
      target.fill(0, value.byteLength);
    },
  };
}

function arrayCodec(element: FieldCodec, length: number): FieldCodec {
  const each = (get: (offset: number) => unknown, offset: number) =>
    Array.from({ length }, (_, index) => get(offset + index * element.size));
  return {
    size: element.size * length,
    alignment: element.alignment,
    read: (data, offset) => each((at) => element.read(data, at), offset),
    view: (data, offset) => each((at) => element.view(data, at), offset),
    write(data, offset, value, label) {
      if (!Array.isArray(value) || value.length > length) {
        throw new RangeError(`${label} must be at most ${length} long`);
      }
      for (let index = 0; index < value.length; index++) {
        element.write(data, offset + index * element.size, value[index], label);
      }
    },
  };
}
