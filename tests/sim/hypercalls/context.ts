/** What every hypercall of a process works with. */
import type { Struct, StructValue, StructView } from "../../../hypercall/struct.ts";
import type { Fields } from "../../../hypercall/struct.ts";
import type { AddressSpace } from "../address_space.ts";
import { no } from "../errno.ts";
import type { Faults } from "../faults.ts";
import type { SimXen } from "../sim_xen.ts";

export interface CallContext {
  readonly xen: SimXen;
  readonly space: AddressSpace;
  readonly faults: Faults;
}

/** One hypercall, decoded as far as its name. */
export interface NamedCall {
  /** Such as "domctl.createdomain"; "domctl.99" where the number means nothing here. */
  readonly name: string;
  readonly perform: () => number;
}

export function unknownCall(name: string): NamedCall {
  return { name, perform: () => no("ENOSYS") };
}

/** The arguments were not readable. */
export function faultyCall(name: string): NamedCall {
  return { name, perform: () => no("EFAULT") };
}

/** Names by number, of each table of numbers: every call is named, so this is looked up often. */
const namesOf = new WeakMap<Readonly<Record<string, number>>, Map<number, string>>();

/** `prefix.name-of-the-number`. */
export function callName(prefix: string, numbers: Readonly<Record<string, number>>, number: number): string {
  let names = namesOf.get(numbers);
  if (names === undefined) {
    names = new Map(Object.entries(numbers).map(([name, value]) => [value, `${prefix}.${name}`]));
    namesOf.set(numbers, names);
  }
  return names.get(number) ?? `${prefix}.${number}`;
}

/** A struct in the caller's memory, to read and write in place; undefined is a fault. */
export function viewAt<F extends Fields>(
  { space }: CallContext,
  codec: Struct<F>,
  address: bigint,
): StructView<F> | undefined {
  const bytes = space.resolve(address, codec.size);
  return bytes && codec.view(bytes);
}

export function readAt<F extends Fields>(
  { space }: CallContext,
  codec: Struct<F>,
  address: bigint,
): StructValue<F> | undefined {
  const bytes = space.resolve(address, codec.size);
  return bytes && codec.decode(bytes);
}

/** A list of u64, such as gfns. */
export function readU64s({ space }: CallContext, address: bigint, count: number): bigint[] | undefined {
  const bytes = space.resolve(address, count * 8);
  if (bytes === undefined) return undefined;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  return Array.from({ length: count }, (_, index) => view.getBigUint64(index * 8, true));
}
