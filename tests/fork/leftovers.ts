import assert from "node:assert/strict";
import type { Host } from "../lab/mod.ts";

/** What a fork could leave behind in dom0: domains, their nodes in xenstore, network devices. */
export interface Inventory {
  readonly domains: readonly string[];
  readonly nodes: readonly string[];
  readonly devices: readonly string[];
}

export async function inventory(host: Host): Promise<Inventory> {
  const { stdout } = await host.run(
    "xl list | awk 'NR > 1 { print $2 }'; echo ---;" +
      "for d in /local/domain /vm /local/domain/0/backend/vif /local/domain/0/backend/console; do " +
      "xenstore-list $d 2>/dev/null | sed s,^,$d/,; done; echo ---; ls /sys/class/net",
  );
  const [domains = [], nodes = [], devices = []] = stdout.split("---\n").map((part) =>
    part.split("\n").filter((line) => line !== "").sort()
  );
  return { domains, nodes, devices };
}

/** Waits until a host is as it was: clean-up of domains takes a moment. */
export async function expectInventory(host: Host, before: Inventory, timeoutMs = 60_000): Promise<void> {
  const deadline = performance.now() + timeoutMs;
  while (true) {
    const now = await inventory(host);
    try {
      assert.deepEqual(now, before);
      return;
    } catch (error) {
      if (performance.now() > deadline) throw error;
    }
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
}
