/** The lab itself: that its hosts can hold forks, and that its guests notice damage. Boots two hosts once. */
import assert from "node:assert/strict";
import { type Guest, type Host, Lab } from "./mod.ts";

/** Reads verdicts until one satisfies `enough`; fails after `timeoutMs`. */
async function verdict(
  guest: Guest,
  timeoutMs: number,
  enough: (v: { rounds: number; mismatches: number }) => boolean,
) {
  const endMs = performance.now() + timeoutMs;
  for (;;) {
    const last = await guest.selfcheck();
    if (last && enough(last)) return last;
    assert.ok(performance.now() < endMs, `no such verdict within ${timeoutMs} ms; last: ${JSON.stringify(last)}`);
    await new Promise((resolve) => setTimeout(resolve, 500));
  }
}

async function runsCleanFor(guest: Guest, seconds: number): Promise<void> {
  const first = await verdict(guest, 60_000, () => true);
  await new Promise((resolve) => setTimeout(resolve, seconds * 1000));
  const last = await verdict(guest, 60_000, ({ rounds }) => rounds > first.rounds + 1);
  assert.equal(last.mismatches, 0, await guest.console());
}

async function hostCanFork(host: Host): Promise<void> {
  const info = (await host.run("xl info")).stdout;
  assert.match(info, /^virt_caps *:.*\bpv hvm\b.*\bhap\b/m);
  assert.match(info, /^xen_version *: 4\.17/m);
  const modules = (await host.run("lsmod")).stdout;
  for (const name of ["xen_evtchn", "xen_gntdev", "xen_privcmd", "xen_netback", "xen_blkback", "bridge", "vxlan"]) {
    assert.match(modules, new RegExp(`^${name} `, "m"));
  }
  assert.equal((await host.run("false", { check: false })).status, 1);
}

/** xenpaging's ENABLE is refused with ENOSYS by a Xen without paging; its first page-out needs everything that forks need. */
async function pagingWorks(host: Host, guest: Guest): Promise<void> {
  const paging = host.spawn(
    `timeout 20 /usr/lib/xen-4.17/bin/xenpaging -v -d ${guest.domid} -f /root/paging -m 64 2>&1`,
  );
  await paging.stdin.close();
  await host.run(`xenstore-write /local/domain/${guest.domid}/memory/target-tot_pages $((96 * 1024))`);
  const { stdout } = await paging.output();
  const text = new TextDecoder().decode(stdout);
  assert.doesNotMatch(text, /Error initialising|not supported|ENOSYS/, text);
}

async function saveAndRestore(host: Host, guest: Guest): Promise<Guest> {
  const startMs = performance.now();
  await host.run(`xl save ${guest.domid} /root/saved`, { timeoutMs: 120_000 });
  const savedMs = performance.now();
  await host.run("xl restore /root/saved", { timeoutMs: 120_000 });
  const restoredMs = performance.now();
  console.log(`xl save ${Math.round(savedMs - startMs)} ms, xl restore ${Math.round(restoredMs - savedMs)} ms`);
  const { stdout } = await host.run(`xl domid ${guest.name}`);
  return await host.guestByDomid(Number(stdout));
}

async function damageIsNoticed(guest: Guest): Promise<void> {
  // A word may be written anew before it is verified, or lie in memory that has been freed: several tries.
  for (let attempt = 1;; attempt++) {
    const poked = await guest.poke(20);
    console.log(poked.split("\n")[0]);
    try {
      await verdict(guest, 15_000, ({ mismatches }) => mismatches > 0);
      assert.match(await guest.console(), /selfcheck: MISMATCH memory \d: round \d+, word \d+/);
      return;
    } catch (error) {
      if (attempt === 3) throw error;
    }
  }
}

async function hostsAreJoined(lab: Lab): Promise<void> {
  const [one, two] = [lab.host(1), lab.host(2)];
  await one.run(`ping -c 2 -W 5 ${two.address}`);
  const listener = "timeout 20 socat -u UDP4-RECVFROM:7777,ip-add-membership=239.1.2.3:eth1 STDOUT";
  const heard = two.run(listener, { check: false });
  for (let i = 0; i < 5; i++) {
    await new Promise((resolve) => setTimeout(resolve, 1000));
    await one.run("echo hello | socat -u STDIN UDP4-DATAGRAM:239.1.2.3:7777,ip-multicast-if=10.98.0.1", {
      check: false,
    });
  }
  assert.equal((await heard).stdout, "hello\n");
  await one.setLink(false);
  assert.equal((await one.run(`ping -c 1 -W 1 ${two.address}`, { check: false })).status, 1);
  await one.setLink(true);
  await one.run(`ping -c 20 -i 0.2 -W 1 -o ${two.address} || ping -c 5 ${two.address}`);
  await one.netem(100, 0);
  assert.equal((await one.run(`ping -c 1 -W 1 ${two.address}`, { check: false })).status, 1);
  await one.netem(0, 0);
  await one.run(`ping -c 5 -W 2 ${two.address}`);
}

Deno.test("lab: hosts fit for forks, and guests that notice damage", async (t) => {
  await using lab = await Lab.up({ hosts: 2 });
  const host = lab.host(1);

  await t.step("a host has what forks need", () => hostCanFork(host));

  await t.step("a guest of 96 MiB boots, its shell answers, its memory can be paged out", async () => {
    const guest = await host.createGuest({ name: "small", memoryMib: 96 });
    const answer = await guest.shell("echo out; echo err >&2; ls /dev/xen/xenbus /usr/bin/awk; exit 3");
    assert.deepEqual(answer, { status: 3, output: "out\nerr\n/dev/xen/xenbus\n/usr/bin/awk\n" });
    const [slow, quick] = await Promise.all([guest.shell("sleep 2; echo slow"), guest.shell("head -c 5000 /dev/zero")]);
    assert.equal(slow.output, "slow\n");
    assert.equal(quick.output.length, 2048);
    await pagingWorks(host, guest);
    await guest.destroy();
  });

  await t.step("a guest has a network", async () => {
    const guest = await host.createGuest({ name: "net", vif: "labbr", ip: "10.97.0.2/24" });
    await host.run("ip address add 10.97.0.1/24 dev labbr && ping -c 3 -W 5 10.97.0.2");
    await guest.destroy();
  });

  let guest = await host.createGuest({ name: "checked", kind: "selfcheck", vcpus: 2 });
  await t.step("the self-check is silent in a sound guest", () => runsCleanFor(guest, 15));

  await t.step("a saved and restored guest is whole", async () => {
    guest = await saveAndRestore(host, guest);
    await runsCleanFor(guest, 8);
  });

  await t.step("the self-check notices a damaged page", () => damageIsNoticed(guest));

  await t.step("files and ports lead into dom0", async () => {
    const local = await Deno.makeTempFile();
    await Deno.writeFile(local, new Uint8Array(3_000_000).fill(7), { mode: 0o755 });
    await host.copyTo(local, "/root/new/file");
    assert.match((await host.run("stat -c '%s %a' /root/new/file")).stdout, /^3000000 755$/m);
    await host.copyFrom("/root/new/file", local);
    assert.equal((await Deno.stat(local)).size, 3_000_000);
    await Deno.remove(local);
    const echo = host.spawn("socat UNIX-LISTEN:/run/echo.sock EXEC:cat");
    await host.run("until [ -S /run/echo.sock ]; do sleep 0.1; done");
    await using forward = await host.forward("/run/echo.sock");
    using connection = await Deno.connect({ port: forward.port });
    await connection.write(new TextEncoder().encode("ping"));
    const buffer = new Uint8Array(4);
    await connection.read(buffer);
    assert.equal(new TextDecoder().decode(buffer), "ping");
    connection.close;
    echo.kill();
    await echo.status;
    await Promise.all([echo.stdin.close().catch(() => {}), echo.stdout.cancel(), echo.stderr.cancel()]);
  });

  await t.step("two hosts are joined by a cable that can be cut", () => hostsAreJoined(lab));

  await t.step("a host whose power was cut boots again with its disk", async () => {
    await host.run("echo kept > /root/kept && sync");
    await host.restart();
    assert.equal((await host.run("cat /root/kept")).stdout, "kept\n");
  });
});
