/** The certificates that hosts of a cluster know each other by: one authority, one certificate a host, its name in it. */

/** PEM texts. */
export interface TlsIdentity {
  readonly authority: string;
  readonly certificate: string;
  readonly key: string;
}

export interface TlsFiles {
  readonly authority: string;
  readonly certificate: string;
  readonly key: string;
}

/** Rejects if a file cannot be read, or others than its owner may read the key. */
export async function loadTls(files: TlsFiles): Promise<TlsIdentity> {
  const { mode } = await stat(files.key);
  if (mode !== null && (mode & 0o077) !== 0) {
    throw new Error(`Cannot use the key ${files.key}: others may read it. Run: chmod 600 ${files.key}`);
  }
  const [authority, certificate, key] = await Promise.all(
    [files.authority, files.certificate, files.key].map((path) => read(path)),
  );
  return { authority: authority ?? "", certificate: certificate ?? "", key: key ?? "" };
}

async function stat(path: string): Promise<Deno.FileInfo> {
  try {
    return await Deno.stat(path);
  } catch (cause) {
    throw new Error(`Cannot read ${path}: is it made yet? (snowflock keygen)`, { cause });
  }
}

async function read(path: string): Promise<string> {
  try {
    return await Deno.readTextFile(path);
  } catch (cause) {
    throw new Error(`Cannot read ${path}: is it made yet? (snowflock keygen)`, { cause });
  }
}

/** The DNS names in a certificate's subjectAltName as node:tls prints it: `DNS:a, DNS:b`. */
export function dnsNames(subjectAltName: string | undefined): string[] {
  return (subjectAltName ?? "").split(", ").filter((entry) => entry.startsWith("DNS:")).map((entry) =>
    entry.slice(4).toLowerCase()
  );
}
