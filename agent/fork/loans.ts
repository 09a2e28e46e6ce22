/** Which snapshots other hosts' clones still need: one that nobody here uses any more stays until they are whole or have ended. */

interface Loan {
  readonly borrowers: Set<string>;
  /** The engine itself is done with it. */
  released: boolean;
}

export class SnapshotLoans {
  readonly #release: (snapshot: string) => Promise<void>;
  readonly #loans = new Map<string, Loan>();

  /** `release` gives up this host's own use of a snapshot. */
  constructor(release: (snapshot: string) => Promise<void>) {
    this.#release = release;
  }

  /** A clone on another host is about to need a snapshot. */
  lend(snapshot: string, ticket: string, id: number): void {
    const loan = this.#loans.get(snapshot) ?? { borrowers: new Set(), released: false };
    this.#loans.set(snapshot, loan);
    loan.borrowers.add(`${ticket}/${id}`);
  }

  /** A clone needs its parent's memory no more. Nothing happens for one that has borrowed nothing. */
  async giveBack(ticket: string, id: number): Promise<void> {
    for (const [snapshot, loan] of this.#loans) {
      if (!loan.borrowers.delete(`${ticket}/${id}`) || loan.borrowers.size > 0) continue;
      this.#loans.delete(snapshot);
      if (loan.released) await this.#release(snapshot);
    }
  }

  /** The engine needs the snapshot no more; it is given up with the last borrower. */
  async release(snapshot: string): Promise<void> {
    const loan = this.#loans.get(snapshot);
    if (loan === undefined) await this.#release(snapshot);
    else loan.released = true;
  }
}
