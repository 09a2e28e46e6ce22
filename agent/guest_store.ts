import type { Xenstore } from "../hypercall/xenstore/mod.ts";
import type { GuestStore } from "./guest/ports.ts";

/** Xenstore as the guest service needs it. */
export function guestStore(xenstore: Xenstore): GuestStore {
  return {
    read: (path) => xenstore.readBytes(path),
    list: async (path) => await xenstore.list(path) ?? [],
    watch: (path, onEvent) => xenstore.watch(path, onEvent),
    writeWithin: (base, path, value) =>
      xenstore.transaction(async (nodes) => {
        if (await nodes.readBytes(base) === undefined) return false;
        await nodes.write(path, value);
        return true;
      }),
  };
}
