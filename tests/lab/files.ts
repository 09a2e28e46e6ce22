/** Files that may not be there. */

export async function exists(path: string): Promise<boolean> {
  return await Deno.stat(path).then(() => true, (error: unknown) => {
    if (error instanceof Deno.errors.NotFound) return false;
    throw error;
  });
}

/** Removes a file, or a folder with what is in it. */
export async function removeIfThere(path: string): Promise<void> {
  await Deno.remove(path, { recursive: true }).catch((error: unknown) => {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  });
}
