import type { SimGuest } from "./sim_guest.ts";

/**
 * Steps the guests in turn, and `pump` (whatever serves them) after each round, until `done`. Throws after `rounds` rounds: then
 * somebody waits for something that never comes.
 */
export function drive(
  guests: () => readonly SimGuest[],
  pump: () => void,
  done: () => boolean,
  rounds = 10_000,
): number {
  for (let round = 0; round < rounds; round++) {
    if (done()) return round;
    for (const guest of guests()) guest.step();
    pump();
  }
  throw new Error(`the guests were not done after ${rounds} rounds`);
}

/** The same where what serves them is asynchronous. */
export async function driveAsync(
  guests: () => readonly SimGuest[],
  pump: () => Promise<void>,
  done: () => boolean,
  rounds = 10_000,
): Promise<number> {
  for (let round = 0; round < rounds; round++) {
    if (done()) return round;
    for (const guest of guests()) guest.step();
    await pump();
  }
  throw new Error(`the guests were not done after ${rounds} rounds`);
}
