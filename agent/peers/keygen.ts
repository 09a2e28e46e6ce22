/** `snowflock keygen DIR HOST...`: what hosts know each other by, made with the openssl program. */
import { join } from "node:path";

const DAYS = "3650";
/** Host names as the config takes them; not of digits alone, which TLS takes for an address. */
const HOST = /^(?!\d+$)[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$/;
const MAX_HOSTS = 1024;

/** Files for a host to get, by its name. */
export interface HostFiles {
  readonly host: string;
  readonly certificate: string;
  readonly key: string;
}

export interface Keys {
  /** The authority's certificate: every host gets it. */
  readonly authority: string;
  readonly hosts: readonly HostFiles[];
}

/**
 * Makes an authority in `directory` (`authority.pem`, `authority.key`), if there is none yet, and a certificate with key
 * (`HOST.pem`, `HOST.key`) for each host. Nothing that exists is overwritten: a host that has its files already is an error, and
 * then nothing is made. Keys are readable by their owner alone. Rejects with the reason; half-made files do not stay.
 */
export async function keygen(directory: string, hosts: readonly string[]): Promise<Keys> {
  if (hosts.length === 0 || hosts.length > MAX_HOSTS) throw new Error(`Name 1 to ${MAX_HOSTS} hosts`);
  const bad = hosts.find((host) => !HOST.test(host) || host.toLowerCase() === "authority");
  if (bad !== undefined) {
    throw new Error(`Cannot make a certificate for ${JSON.stringify(bad)}: not a usable host name`);
  }
  const lower = hosts.map((host) => host.toLowerCase());
  const twice = hosts.find((host, index) => lower.indexOf(host.toLowerCase()) !== index);
  if (twice !== undefined) throw new Error(`Cannot make two certificates for ${twice}`);
  await Deno.mkdir(directory, { recursive: true, mode: 0o700 });

  const authority = join(directory, "authority.pem");
  const authorityKey = join(directory, "authority.key");
  const files = hosts.map((host) => ({
    host,
    certificate: join(directory, `${host}.pem`),
    key: join(directory, `${host}.key`),
  }));
  for (const path of files.flatMap(({ certificate, key }) => [certificate, key])) {
    if (await exists(path)) throw new Error(`Cannot make ${path}: it exists, and is not overwritten`);
  }
  const known = await exists(authority);
  if (known !== await exists(authorityKey)) {
    throw new Error(`Cannot use the authority in ${directory}: only one of authority.pem and authority.key is there`);
  }

  await using made = new AsyncDisposableStack();
  const keep = (path: string) => made.defer(() => Deno.remove(path).catch(ignoreMissing));
  if (!known) {
    keep(authority);
    keep(authorityKey);
    await makeKey(authorityKey);
    await openssl(["req", "-x509", "-new", "-key", authorityKey, "-out", authority, "-days", DAYS], {
      subject: "snowflock authority",
      extensions: ["basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign,cRLSign"],
    });
  }
  for (const { host, certificate, key } of files) {
    keep(certificate);
    keep(key);
    await makeKey(key);
    // An issuer (-CA) with req -x509 takes openssl 3; the serial number is random.
    await openssl(
      [
        "req",
        "-x509",
        "-new",
        "-key",
        key,
        "-CA",
        authority,
        "-CAkey",
        authorityKey,
        "-out",
        certificate,
        "-days",
        DAYS,
      ],
      {
        subject: host,
        extensions: [
          "basicConstraints=critical,CA:FALSE",
          "keyUsage=critical,digitalSignature",
          "extendedKeyUsage=serverAuth,clientAuth",
          `subjectAltName=DNS:${host}`,
        ],
      },
    );
  }
  made.move();
  return { authority, hosts: files };
}

async function makeKey(path: string): Promise<void> {
  const key = await openssl(["genpkey", "-algorithm", "ed25519"]);
  // Made with its mode, not changed after: nobody can read it in between.
  await Deno.writeTextFile(path, key, { createNew: true, mode: 0o600 });
}

async function openssl(
  args: readonly string[],
  request?: { readonly subject: string; readonly extensions: readonly string[] },
): Promise<string> {
  // No configuration but this one: the system's may add extensions of its own.
  const config = request === undefined ? undefined : await Deno.makeTempFile({ prefix: "snowflock-openssl-" });
  try {
    if (config !== undefined && request !== undefined) {
      const lines = ["[req]", "distinguished_name=name", "x509_extensions=extensions", "prompt=no", "[name]"];
      await Deno.writeTextFile(
        config,
        [...lines, `CN=${request.subject}`, "[extensions]", ...request.extensions, ""].join("\n"),
      );
    }
    const { success, stdout, stderr } = await new Deno.Command("openssl", {
      args: config === undefined ? [...args] : [...args, "-config", config],
      stdin: "null",
      stdout: "piped",
      stderr: "piped",
    }).output();
    if (!success) {
      throw new Error(`openssl ${args[0]} failed: ${new TextDecoder().decode(stderr).trim().slice(0, 500)}`);
    }
    return new TextDecoder().decode(stdout);
  } catch (cause) {
    if (cause instanceof Deno.errors.NotFound) throw new Error("Install the openssl program", { cause });
    throw cause;
  } finally {
    if (config !== undefined) await Deno.remove(config);
  }
}

async function exists(path: string): Promise<boolean> {
  try {
    await Deno.lstat(path);
    return true;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return false;
    throw error;
  }
}

function ignoreMissing(error: unknown): void {
  if (!(error instanceof Deno.errors.NotFound)) throw error;
}
