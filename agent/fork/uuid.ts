/** A domain's handle: a UUID, as Xen has it and as people write it. */

export function uuidBytes(uuid: string): Uint8Array {
  const hex = uuid.replaceAll("-", "");
  if (!/^[0-9a-f]{32}$/.test(hex)) throw new RangeError(`${uuid} is no UUID`);
  return Uint8Array.fromHex(hex);
}

export function uuidText(handle: Uint8Array): string {
  return handle.toHex().replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, "$1-$2-$3-$4-$5");
}
