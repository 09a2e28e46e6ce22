/** Writes BTF for tests (include/uapi/linux/btf.h). */

type MemberSpec = readonly [name: string, type: number, byteOffset: number];

export class BtfBuilder {
  readonly #words: number[] = [];
  readonly #names = new Map<string, number>([["", 0]]);
  #strings = "\0";
  #types = 0;

  int(name: string, bytes: number): number {
    return this.#add(name, 1, 0, bytes, [bytes * 8]);
  }

  pointer(to: number): number {
    return this.#add("", 2, 0, to, []);
  }

  array(element: number, count: number): number {
    return this.#add("", 3, 0, 0, [element, 1, count]);
  }

  struct(name: string, bytes: number, members: readonly MemberSpec[]): number {
    return this.#add(name, 4, members.length, bytes, this.#members(members));
  }

  union(name: string, bytes: number, members: readonly MemberSpec[]): number {
    return this.#add(name, 5, members.length, bytes, this.#members(members));
  }

  typedef(name: string, type: number): number {
    return this.#add(name, 8, 0, type, []);
  }

  /** A type of any kind: for kinds that a reader must know, or must refuse. */
  raw(kind: number, vlen: number, size: number, extra: readonly number[]): number {
    return this.#add("", kind, vlen, size, extra);
  }

  bytes(): Uint8Array<ArrayBuffer> {
    const types = Uint32Array.from(this.#words);
    const strings = new TextEncoder().encode(this.#strings);
    const bytes = new Uint8Array(24 + types.byteLength + strings.length);
    const view = new DataView(bytes.buffer);
    view.setUint16(0, 0xeb9f, true);
    view.setUint8(2, 1);
    [24, 0, types.byteLength, types.byteLength, strings.length].forEach((word, at) =>
      view.setUint32(4 + 4 * at, word, true)
    );
    bytes.set(new Uint8Array(types.buffer), 24);
    bytes.set(strings, 24 + types.byteLength);
    return bytes;
  }

  #members(members: readonly MemberSpec[]): number[] {
    return members.flatMap(([name, type, byteOffset]) => [this.#name(name), type, byteOffset * 8]);
  }

  #name(name: string): number {
    let at = this.#names.get(name);
    if (at === undefined) {
      at = this.#strings.length;
      this.#names.set(name, at);
      this.#strings += `${name}\0`;
    }
    return at;
  }

  #add(name: string, kind: number, vlen: number, size: number, extra: readonly number[]): number {
    this.#words.push(this.#name(name), kind << 24 | vlen, size);
    for (const word of extra) this.#words.push(word);
    return ++this.#types;
  }
}
