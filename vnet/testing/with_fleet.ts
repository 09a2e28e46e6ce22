/** What the network tests share: two families, a fleet for the time of a test. */
import { DEFAULT_RANGES, type Family } from "../plan.ts";
import { NamespaceFleet, type RunnerOf, type TestMember } from "./namespace_fleet.ts";
import { PacketTool } from "./packet_tool.ts";

export const RED: Family = { id: "11111111-1111-4111-8111-111111111111", vni: DEFAULT_RANGES.vni.first + 0x11 };
export const BLUE: Family = { id: "22222222-2222-4222-8222-222222222222", vni: DEFAULT_RANGES.vni.first + 0x22 };

export const pause = (ms: number) => new Promise<void>((resolve) => setTimeout(resolve, ms));

export function at<T>(list: readonly T[], index: number): T {
  const item = list[index];
  if (item === undefined) throw new Error(`nothing at ${index}`);
  return item;
}

/** A fleet, the tool, and a folder for state, gone when the test is. */
export async function withFleet(
  runnerOf: RunnerOf,
  test: (fleet: NamespaceFleet, tool: PacketTool) => Promise<void>,
): Promise<void> {
  const directory = await Deno.makeTempDir({ prefix: "snowflock-vnet-" });
  await Deno.chmod(directory, 0o755);
  try {
    await using fleet = await NamespaceFleet.create(runnerOf, DEFAULT_RANGES, directory);
    await using tool = new PacketTool();
    await test(fleet, tool);
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
}

/** Both families on both hosts: red 0 and 1 on a, 2 and 3 on b; blue 0 on a, 1 on b. */
export async function twoFamilies(fleet: NamespaceFleet): Promise<{ red: TestMember[]; blue: TestMember[] }> {
  for (const host of [fleet.a, fleet.b]) {
    for (const family of [RED, BLUE]) await host.network.ensure(family, fleet.options(host));
  }
  const red = [];
  for (const id of [0, 1, 2, 3]) red.push(await fleet.addMember(id < 2 ? fleet.a : fleet.b, RED, id));
  return { red, blue: [await fleet.addMember(fleet.a, BLUE, 0), await fleet.addMember(fleet.b, BLUE, 1)] };
}
