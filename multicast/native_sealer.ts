/** Sealing by OpenSSL's libcrypto, in place: 1 us for a packet, where `node:crypto` copies and takes 20. One instance serves one thread. */
import type { Packet, Sealer, SealerFactory } from "./ports.ts";
import { HEADER_BYTES, NONCE_OFFSET, TAG_BYTES } from "./protocol.ts";

/** Each function with its C declaration (openssl/evp.h, version 3). */
const SYMBOLS = {
  /** EVP_CIPHER_CTX *EVP_CIPHER_CTX_new(void) */
  EVP_CIPHER_CTX_new: { parameters: [], result: "pointer" },
  /** void EVP_CIPHER_CTX_free(EVP_CIPHER_CTX *ctx): clears the key too */
  EVP_CIPHER_CTX_free: { parameters: ["pointer"], result: "void" },
  /** const EVP_CIPHER *EVP_aes_256_gcm(void) */
  EVP_aes_256_gcm: { parameters: [], result: "pointer" },
  /** int EVP_EncryptInit_ex(EVP_CIPHER_CTX *ctx, const EVP_CIPHER *type, ENGINE *impl, const unsigned char *key, const unsigned char *iv) */
  EVP_EncryptInit_ex: { parameters: ["pointer", "pointer", "pointer", "pointer", "pointer"], result: "i32" },
  EVP_DecryptInit_ex: { parameters: ["pointer", "pointer", "pointer", "pointer", "pointer"], result: "i32" },
  /** int EVP_EncryptUpdate(EVP_CIPHER_CTX *ctx, unsigned char *out, int *outl, const unsigned char *in, int inl) */
  EVP_EncryptUpdate: { parameters: ["pointer", "pointer", "pointer", "pointer", "i32"], result: "i32" },
  EVP_DecryptUpdate: { parameters: ["pointer", "pointer", "pointer", "pointer", "i32"], result: "i32" },
  /** int EVP_EncryptFinal_ex(EVP_CIPHER_CTX *ctx, unsigned char *out, int *outl) */
  EVP_EncryptFinal_ex: { parameters: ["pointer", "pointer", "pointer"], result: "i32" },
  EVP_DecryptFinal_ex: { parameters: ["pointer", "pointer", "pointer"], result: "i32" },
  /** int EVP_CIPHER_CTX_ctrl(EVP_CIPHER_CTX *ctx, int type, int arg, void *ptr) */
  EVP_CIPHER_CTX_ctrl: { parameters: ["pointer", "i32", "i32", "pointer"], result: "i32" },
} as const;

const EVP_CTRL_AEAD_GET_TAG = 0x10;
const EVP_CTRL_AEAD_SET_TAG = 0x11;

interface Pointers {
  readonly header: Deno.PointerObject;
  readonly nonce: Deno.PointerObject;
  readonly body: Deno.PointerObject;
}

/** Loads libcrypto.so.3. Throws when the host has none. */
export function nativeSealer(): SealerFactory {
  const { symbols } = Deno.dlopen("libcrypto.so.3", SYMBOLS);
  return (key) => new NativeSealer(symbols, key);
}

class NativeSealer implements Sealer {
  readonly #symbols: Deno.DynamicLibrary<typeof SYMBOLS>["symbols"];
  readonly #encrypt: Deno.PointerObject;
  readonly #decrypt: Deno.PointerObject;
  /** The tag on its way, and the length that libcrypto reports: longer than 64 bytes, so that V8 does not move them. */
  readonly #scratch = new Uint8Array(128);
  readonly #tag = this.#scratch.subarray(0, TAG_BYTES);
  readonly #tagPointer = pointer(BigInt(Deno.UnsafePointer.value(Deno.UnsafePointer.of(this.#scratch))));
  readonly #lengthPointer = pointer(BigInt(Deno.UnsafePointer.value(Deno.UnsafePointer.of(this.#scratch))) + 64n);
  readonly #pointers = new WeakMap<Packet, Pointers>();

  constructor(symbols: Deno.DynamicLibrary<typeof SYMBOLS>["symbols"], key: Uint8Array) {
    if (key.length !== 32) throw new RangeError(`A key of ${key.length} bytes, not 32`);
    this.#symbols = symbols;
    const held = new Uint8Array(128);
    held.set(key);
    const cipher = symbols.EVP_aes_256_gcm();
    const keyPointer = Deno.UnsafePointer.of(held);
    this.#encrypt = notNull(symbols.EVP_CIPHER_CTX_new());
    this.#decrypt = notNull(symbols.EVP_CIPHER_CTX_new());
    check(symbols.EVP_EncryptInit_ex(this.#encrypt, cipher, null, keyPointer, null));
    check(symbols.EVP_DecryptInit_ex(this.#decrypt, cipher, null, keyPointer, null));
    held.fill(0);
  }

  seal(packet: Packet): void {
    const { header, nonce, body } = this.#of(packet);
    const context = this.#encrypt;
    const { EVP_EncryptInit_ex, EVP_EncryptUpdate, EVP_EncryptFinal_ex, EVP_CIPHER_CTX_ctrl } = this.#symbols;
    const length = packet.length - HEADER_BYTES;
    const done = EVP_EncryptInit_ex(context, null, null, null, nonce) === 1 &&
      EVP_EncryptUpdate(context, null, this.#lengthPointer, header, HEADER_BYTES) === 1 &&
      EVP_EncryptUpdate(context, body, this.#lengthPointer, body, length) === 1 &&
      EVP_EncryptFinal_ex(context, this.#tagPointer, this.#lengthPointer) === 1 &&
      EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_AEAD_GET_TAG, TAG_BYTES, this.#tagPointer) === 1;
    if (!done) throw new Error("Cannot seal a packet: libcrypto refused");
    packet.bytes.set(this.#tag, packet.length);
    packet.length += TAG_BYTES;
  }

  open(packet: Packet): boolean {
    const end = packet.length - TAG_BYTES;
    if (end < HEADER_BYTES) return false;
    const { header, nonce, body } = this.#of(packet);
    const context = this.#decrypt;
    const { EVP_DecryptInit_ex, EVP_DecryptUpdate, EVP_DecryptFinal_ex, EVP_CIPHER_CTX_ctrl } = this.#symbols;
    for (let n = 0; n < TAG_BYTES; n++) this.#scratch[n] = packet.bytes[end + n] ?? 0;
    const genuine = EVP_DecryptInit_ex(context, null, null, null, nonce) === 1 &&
      EVP_DecryptUpdate(context, null, this.#lengthPointer, header, HEADER_BYTES) === 1 &&
      EVP_DecryptUpdate(context, body, this.#lengthPointer, body, end - HEADER_BYTES) === 1 &&
      EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_AEAD_SET_TAG, TAG_BYTES, this.#tagPointer) === 1 &&
      EVP_DecryptFinal_ex(context, this.#tagPointer, this.#lengthPointer) === 1;
    if (genuine) packet.length = end;
    return genuine;
  }

  [Symbol.dispose](): void {
    this.#symbols.EVP_CIPHER_CTX_free(this.#encrypt);
    this.#symbols.EVP_CIPHER_CTX_free(this.#decrypt);
  }

  #of(packet: Packet): Pointers {
    let pointers = this.#pointers.get(packet);
    if (pointers === undefined) {
      pointers = {
        header: pointer(packet.address),
        nonce: pointer(packet.address + BigInt(NONCE_OFFSET)),
        body: pointer(packet.address + BigInt(HEADER_BYTES)),
      };
      this.#pointers.set(packet, pointers);
    }
    return pointers;
  }
}

function pointer(address: bigint): Deno.PointerObject {
  return notNull(Deno.UnsafePointer.create(address));
}

function notNull(value: Deno.PointerValue): Deno.PointerObject {
  if (value === null) throw new TypeError("A null pointer");
  return value;
}

function check(result: number): void {
  if (result !== 1) throw new Error("Cannot set up AES-256-GCM: libcrypto refused");
}
