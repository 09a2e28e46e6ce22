/**
 * What must be undone if the agent dies: written before a thing is made, taken out when it is gone. One JSON file, replaced
 * whole, so that a crash leaves the old or the new one.
 */
import { z } from "zod";

const Uuid = z.string().regex(/^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/);
const Run = z.tuple([z.string().regex(/^\d{1,20}$/), z.int().positive()]);
const Content = z.strictObject({
  version: z.literal(1),
  /** Domains that were made as shells, by UUID. */
  shells: z.array(Uuid).max(100_000),
  /** Domains whose paging ring is held, or is about to be. */
  parents: z.array(z.strictObject({
    domid: z.int().min(1).max(0x7fef),
    uuid: Uuid,
    ring: z.string().regex(/^\d{1,20}$/),
    ranges: z.array(Run).max(1 << 16),
    /** An agent has paused it, or was about to. */
    paused: z.boolean().optional(),
  })).max(10_000),
});

export type JournalContent = z.infer<typeof Content>;
export type JournalParent = JournalContent["parents"][number];

/** Where the journal is kept. */
export interface JournalFile {
  /** Undefined where there is none yet. */
  read(): string | undefined;
  /** Replaces the content whole, and does not return before it is on the disk. */
  replace(text: string): void;
}

export class Journal {
  readonly #file: JournalFile;
  readonly #shells: Set<string>;
  readonly #parents: Map<string, JournalParent>;

  /** Reads what an earlier agent left. Throws an Error that says so if the file is no journal. */
  constructor(file: JournalFile) {
    this.#file = file;
    const text = file.read();
    let content: JournalContent = { version: 1, shells: [], parents: [] };
    if (text !== undefined) {
      try {
        content = Content.parse(JSON.parse(text));
      } catch (cause) {
        throw new Error("Cannot read the agent's journal: it is damaged. Move it away once no clones are left", {
          cause,
        });
      }
    }
    this.#shells = new Set(content.shells);
    this.#parents = new Map(content.parents.map((parent) => [parent.uuid, parent]));
  }

  get shells(): readonly string[] {
    return [...this.#shells];
  }

  get parents(): readonly JournalParent[] {
    return [...this.#parents.values()];
  }

  addShells(uuids: readonly string[]): void {
    for (const uuid of uuids) this.#shells.add(uuid);
    this.#write();
  }

  removeShell(uuid: string): void {
    if (this.#shells.delete(uuid)) this.#write();
  }

  addParent(parent: JournalParent): void {
    if (this.#parents.get(parent.uuid)?.domid === parent.domid) return;
    this.#parents.set(parent.uuid, parent);
    this.#write();
  }

  /** Whether the agent has the parent paused: said before it is, and taken back after it runs again. */
  setPaused(uuid: string, paused: boolean): void {
    const parent = this.#parents.get(uuid);
    if (parent === undefined) return;
    this.#parents.set(uuid, { ...parent, paused });
    this.#write();
  }

  removeParent(uuid: string): void {
    if (this.#parents.delete(uuid)) this.#write();
  }

  #write(): void {
    const content: JournalContent = {
      version: 1,
      shells: this.shells as string[],
      parents: this.parents as JournalParent[],
    };
    this.#file.replace(JSON.stringify(content));
  }
}

/** A journal in `path`. */
export function journalFile(path: string): JournalFile {
  return {
    read() {
      try {
        return Deno.readTextFileSync(path);
      } catch (error) {
        if (error instanceof Deno.errors.NotFound) return undefined;
        throw error;
      }
    },
    replace(text) {
      const next = `${path}.next`;
      {
        using file = Deno.openSync(next, { write: true, create: true, truncate: true, mode: 0o600 });
        const bytes = new TextEncoder().encode(text);
        let at = 0;
        while (at < bytes.length) at += file.writeSync(bytes.subarray(at));
        file.syncSync();
      }
      Deno.renameSync(next, path);
    },
  };
}
