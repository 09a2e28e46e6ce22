import assert from "node:assert/strict";
import { join } from "node:path";
import { keygen } from "./keygen.ts";
import { loadTls } from "./tls.ts";

async function directory(): Promise<AsyncDisposable & { path: string }> {
  const path = await Deno.makeTempDir();
  return { path, [Symbol.asyncDispose]: () => Deno.remove(path, { recursive: true }) };
}

async function openssl(...args: string[]): Promise<string> {
  const { stdout, success } = await new Deno.Command("openssl", { args, stderr: "null" }).output();
  assert(success, `openssl ${args.join(" ")}`);
  return new TextDecoder().decode(stdout);
}

Deno.test("keygen: a certificate for each host, of one authority; keys are their owner's alone", async () => {
  await using temporary = await directory();
  const keys = await keygen(join(temporary.path, "new"), ["alpha", "b-2"]);
  assert.deepEqual(keys.hosts.map(({ host }) => host), ["alpha", "b-2"]);
  for (const { host, certificate, key } of keys.hosts) {
    await openssl("verify", "-CAfile", keys.authority, certificate);
    assert.match(
      await openssl("x509", "-in", certificate, "-noout", "-ext", "subjectAltName"),
      new RegExp(`DNS:${host}\\s`),
    );
    assert.equal(((await Deno.stat(key)).mode ?? 0) & 0o777, 0o600);
    await loadTls({ authority: keys.authority, certificate, key });
  }
  assert.equal(((await Deno.stat(join(temporary.path, "new", "authority.key"))).mode ?? 0) & 0o777, 0o600);
});

Deno.test("keygen: more hosts later get certificates of the same authority, and nothing is overwritten", async () => {
  await using temporary = await directory();
  await keygen(temporary.path, ["a"]);
  const before = await Deno.readTextFile(join(temporary.path, "a.key"));
  const { authority, hosts } = await keygen(temporary.path, ["b"]);
  await openssl("verify", "-CAfile", authority, hosts[0]?.certificate ?? "");
  await assert.rejects(keygen(temporary.path, ["c", "a"]), /a\.pem: it exists, and is not overwritten/);
  assert.equal(await Deno.readTextFile(join(temporary.path, "a.key")), before);
  await assert.rejects(Deno.stat(join(temporary.path, "c.pem")), Deno.errors.NotFound);
  await Deno.remove(authority);
  await assert.rejects(keygen(temporary.path, ["d"]), /only one of/);
});

Deno.test("keygen: names that are no host names are refused", async () => {
  await using temporary = await directory();
  for (const bad of ["", "a.b", "../a", "a/b", "-a", "12", "authority", "a\nb"]) {
    await assert.rejects(keygen(temporary.path, [bad]), /not a usable host name/, bad);
  }
  await assert.rejects(keygen(temporary.path, ["a", "A"]), /two certificates/);
  await assert.rejects(keygen(temporary.path, []), /Name 1 to/);
  assert.deepEqual([...Deno.readDirSync(temporary.path)], []);
});

Deno.test("a key that others may read is not used", async () => {
  await using temporary = await directory();
  const { authority, hosts } = await keygen(temporary.path, ["a"]);
  const { certificate, key } = hosts[0] ?? { certificate: "", key: "" };
  await Deno.chmod(key, 0o640);
  await assert.rejects(loadTls({ authority, certificate, key }), /chmod 600/);
  await assert.rejects(loadTls({ authority, certificate, key: `${key}.not` }), /snowflock keygen/);
});
