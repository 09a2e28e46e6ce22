import type { VifPlumber } from "./fork/vif.ts";

/** Network devices of dom0, by iproute2. */
export const linkPlumber: VifPlumber = {
  async exists(device) {
    try {
      await Deno.stat(`/sys/class/net/${device}`);
      return true;
    } catch (error) {
      if (error instanceof Deno.errors.NotFound) return false;
      throw error;
    }
  },
  async attach(device, bridge) {
    const master = bridge === "" ? [] : ["master", bridge];
    const { success, stderr } = await new Deno.Command("ip", {
      args: ["link", "set", "dev", device, ...master, "up"],
      stdin: "null",
      stdout: "null",
      stderr: "piped",
    }).output();
    if (!success) throw new Error(`Cannot put ${device} on ${bridge}: ${new TextDecoder().decode(stderr).trim()}`);
  },
};
