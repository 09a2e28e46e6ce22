import type { Guest, Host } from "../lab/mod.ts";
import { Guest as LabGuest } from "../lab/mod.ts";

export interface Baseline {
  readonly xlSaveMs: number;
  readonly xlRestoreMs: number;
}

/** What the toolstack needs to copy a guest: `xl save` and `xl restore` of it. The guest goes on under another domid. */
export async function saveAndRestore(host: Host, guest: Guest): Promise<{ guest: Guest; baseline: Baseline }> {
  const image = `/root/${guest.name}.image`;
  const timed = (command: string) =>
    `s=$(date +%s%N); ${command} >/dev/null 2>&1 || exit 1; e=$(date +%s%N); echo $(((e - s) / 1000))`;
  const saved = await host.run(timed(`xl save ${guest.domid} ${image}`), { timeoutMs: 120_000 });
  const restored = await host.run(timed(`xl restore ${image}`), { timeoutMs: 120_000 });
  const { stdout } = await host.run(`rm ${image}; xl domid ${guest.name}`);
  const again = new LabGuest(host, Number(stdout), guest.name);
  await again.ready();
  return {
    guest: again,
    baseline: { xlSaveMs: Number(saved.stdout) / 1000, xlRestoreMs: Number(restored.stdout) / 1000 },
  };
}
