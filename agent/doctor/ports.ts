/** What the checks look at. The real ones are given by `main.ts`. */
import type { Xen } from "../../hypercall/xen_api.ts";

export interface DoctorPorts {
  /** Effective user id. */
  uid(): number;
  /** A file's text, or undefined where there is none or it cannot be read. Files of /proc, /sys and /lib/modules. */
  readText(path: string): Promise<string | undefined>;
  exists(path: string): Promise<boolean>;
  /** Opens Xen; throws where that is impossible. */
  openXen(): Xen & Disposable;
  /** Asks xenstored for anything; throws where it does not answer. */
  askXenstored(): Promise<void>;
}

/** The real files. */
export const DOCTOR_FILES: Pick<DoctorPorts, "uid" | "readText" | "exists"> = {
  uid: () => Deno.uid() ?? -1,
  readText: async (path) => {
    try {
      return await Deno.readTextFile(path);
    } catch {
      // Absent, forbidden, not readable: the checks tell them apart by what they look at next.
      return undefined;
    }
  },
  exists: async (path) => {
    try {
      await Deno.stat(path);
      return true;
    } catch {
      return false;
    }
  },
};
