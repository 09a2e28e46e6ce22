import assert from "node:assert/strict";
import { GrantEntryV1, GTF, XS } from "../../../hypercall/abi/mod.ts";
import { DOM0, type Domid, type Gfn, type Port } from "../../../hypercall/ports.ts";
import { openXenstore, XenstoreError } from "../../../hypercall/xenstore/mod.ts";
import { encodeStrings } from "../../../hypercall/xenstore/wire.ts";
import { ProcessKilled } from "../errno.ts";
import { gfns, makeDomain, open } from "../fixture.ts";
import { GuestStore, refusalOf } from "../guest/guest_store.ts";
import { openSimMachine } from "../machine.ts";
import { SimXenstore } from "./server.ts";

/** A domain with a ring page behind grant reference 1, introduced. */
function openStore(quotas: ConstructorParameters<typeof SimXenstore>[1] = {}) {
  const parts = open();
  const store = new SimXenstore(parts.sim, quotas);
  const toolstack = new GuestStore(store.connectToolstack());
  const introduce = (): Domid => {
    const domid = makeDomain(parts.xen, 8);
    const frame = parts.sim.domain(domid).grants.frame(0);
    assert(frame !== undefined);
    frame.write(GrantEntryV1.size, GrantEntryV1.encode({ flags: GTF.permit_access, domid: 0, frame: 5 }));
    const port = parts.xen.allocateUnbound(domid, DOM0);
    toolstack.write(`/local/domain/${domid}`, "");
    toolstack.setPermissions(`/local/domain/${domid}`, "n0", `r${domid}`);
    toolstack.write(`/local/domain/${domid}/data`, "");
    toolstack.setPermissions(`/local/domain/${domid}/data`, `n${domid}`);
    toolstack.request(XS.INTRODUCE, encodeStrings(String(domid), "5", String(port)));
    return domid;
  };
  return { ...parts, store, toolstack, introduce };
}

Deno.test("the program's client reads, writes, lists and removes", async () => {
  const { store, machine } = openStore();
  await using client = openXenstore(store.connect(machine));
  await client.write("/a/b/c", "value");
  assert.equal(await client.read("/a/b/c"), "value");
  assert.equal(await client.read("/a/x"), undefined);
  assert.deepEqual(await client.list("/a"), ["b"]);
  await client.setPermissions("/a/b", [{ domid: DOM0, access: "none" }, { domid: 7 as Domid, access: "read" }]);
  assert.deepEqual(await client.getPermissions("/a/b"), [{ domid: 0, access: "none" }, { domid: 7, access: "read" }]);
  await client.remove("/a/b");
  assert.deepEqual(await client.list("/a"), []);
});

Deno.test("a directory of many names is read in parts", async () => {
  const { store, machine } = openStore();
  await using client = openXenstore(store.connect(machine));
  const names = Array.from({ length: 700 }, (_, index) => `node-with-a-long-name-${index}`);
  for (const name of names) await client.write(`/many/${name}`, "");
  assert.deepEqual((await client.list("/many"))?.sort(), names.sort());
});

Deno.test("a watch tells of changes at and below it, of the removal of what it watches, and once at first", async () => {
  const { store, toolstack, machine } = openStore();
  await using client = openXenstore(store.connect(machine));
  const seen: string[] = [];
  const watch = await client.watch("/a/b", (path) => seen.push(path));
  toolstack.write("/a/b/c", "1");
  toolstack.write("/a/bc", "1");
  toolstack.remove("/a");
  await client.read("/");
  assert.deepEqual(seen, ["/a/b", "/a/b/c", "/a/b"]);
  await watch[Symbol.asyncDispose]();
  toolstack.write("/a/b", "2");
  await client.read("/");
  assert.equal(seen.length, 3);
});

Deno.test("a transaction holds unless another changed what it looked at; a new sibling changes the directory", () => {
  const { store, toolstack } = openStore();
  const other = new GuestStore(store.connectToolstack());
  toolstack.write("/t/a", "1");
  const id = toolstack.begin();
  toolstack.write("/t/b", "2", id);
  assert.equal(store.valueAt("/t/b"), undefined);
  other.write("/t/a", "3");
  toolstack.end(id, true);
  assert.equal(store.valueAt("/t/b"), "2", "another value of a node it did not look at does not disturb");
  const disturbed = toolstack.begin();
  toolstack.write("/t/c", "2", disturbed);
  other.write("/t/d", "");
  assert.equal(refusalOf(() => toolstack.end(disturbed, true)), "EAGAIN");
  assert.equal(store.valueAt("/t/c"), undefined);
  assert.equal(refusalOf(() => toolstack.end(disturbed, true)), "ENOENT");
});

Deno.test("the program's client tries a disturbed transaction again", async () => {
  const { store, toolstack, machine } = openStore();
  await using client = openXenstore(store.connect(machine));
  toolstack.write("/n", "1");
  let attempts = 0;
  await client.transaction(async (nodes) => {
    const value = Number(await nodes.read("/n"));
    if (++attempts === 1) toolstack.write("/n", "5");
    await nodes.write("/n", String(value + 1));
  });
  assert.deepEqual([attempts, store.valueAt("/n")], [2, "6"]);
});

Deno.test("a guest touches only what it may", () => {
  const { store, toolstack, introduce } = openStore();
  const [first, second] = [introduce(), introduce()];
  const guest = new GuestStore(store.connectGuest(first));
  toolstack.write("/secret", "x");
  assert.equal(refusalOf(() => guest.read("/secret")), "EACCES");
  assert.equal(refusalOf(() => guest.write("/local/domain/0/x", "")), "EACCES");
  assert.equal(refusalOf(() => guest.read(`/local/domain/${second}/data`)), "EACCES");
  assert.equal(refusalOf(() => guest.write("name", "evil")), "EACCES");
  guest.write("data/mine", "1");
  assert.equal(store.valueAt(`/local/domain/${first}/data/mine`), "1");
  assert.equal(refusalOf(() => guest.setPermissions("data/mine", `n${second}`)), "EPERM");
  guest.setPermissions("data/mine", `n${first}`, `r${second}`);
  const neighbour = new GuestStore(store.connectGuest(second));
  assert.equal(neighbour.read(`/local/domain/${first}/data/mine`), "1");
  assert.equal(refusalOf(() => neighbour.write(`/local/domain/${first}/data/mine`, "2")), "EACCES");
  assert.equal(refusalOf(() => guest.request(XS.INTRODUCE, encodeStrings("9", "1", "1"))), "EACCES");
  assert.equal(refusalOf(() => guest.watch("@releaseDomain", "t")), "EACCES");
  assert.equal(refusalOf(() => guest.write("data/../x", "")), "EINVAL");
});

Deno.test("a guest's watch is relative, and hears nothing of what it may not read", () => {
  const { store, toolstack, introduce } = openStore();
  const domid = introduce();
  const guest = new GuestStore(store.connectGuest(domid));
  guest.watch("data", "token");
  guest.watch("/local/domain/0", "secret");
  toolstack.write(`/local/domain/${domid}/data/x`, "1");
  toolstack.write("/local/domain/0/y", "1");
  assert.deepEqual(guest.takeEvents(), [
    { path: "data", token: "token" },
    { path: "/local/domain/0", token: "secret" },
    { path: "data/x", token: "token" },
  ]);
});

Deno.test("a guest has quotas of nodes, their size, watches and transactions; dom0 has none", () => {
  const { store, toolstack, introduce } = openStore({ nodes: 10 });
  const guest = new GuestStore(store.connectGuest(introduce()));
  assert.equal(
    refusalOf(() => {
      for (let index = 0; index < 100; index++) guest.write(`data/${index}`, "");
    }),
    "ENOSPC",
  );
  assert.equal(guest.list("data").length, 9, "data itself is one of its nodes");
  assert.equal(refusalOf(() => guest.write("data/0", new Uint8Array(2048))), "ENOSPC");
  assert.equal(
    refusalOf(() => {
      for (let index = 0; index < 200; index++) guest.watch("data", `${index}`);
    }),
    "E2BIG",
  );
  assert.equal(
    refusalOf(() => {
      for (let index = 0; index < 11; index++) guest.begin();
    }),
    "ENOSPC",
  );
  toolstack.write("/large", new Uint8Array(4000));
});

Deno.test("introduction needs grant reference 1 and a port; the ends of domains are announced", async () => {
  const { store, machine, sim, xen, introduce } = openStore();
  await using client = openXenstore(store.connect(machine));
  const bare = makeDomain(xen, 8);
  const port = xen.allocateUnbound(bare, DOM0);
  await assert.rejects(() => client.introduce(bare, 5n as Gfn, port), (error) => {
    return error instanceof XenstoreError && error.code === "EINVAL";
  });
  await assert.rejects(() => client.introduce(99 as Domid, 5n as Gfn, 1 as Port), XenstoreError);
  let releases = 0;
  await client.watch("@releaseDomain", () => releases++);
  const domid = introduce();
  assert.equal(await client.isIntroduced(domid), true);
  releases = 0;
  xen.shutdownDomain(domid, 2);
  await client.read("/");
  assert.equal(releases, 1);
  xen.resumeDomain(domid);
  xen.shutdownDomain(domid, 2);
  await client.read("/");
  assert.equal(releases, 1, "announced once, until xenstored is told that it runs again");
  await client.resume(domid);
  xen.resumeDomain(domid);
  xen.shutdownDomain(domid, 3);
  await client.read("/");
  assert.equal(releases, 2);
  const guest = new GuestStore(store.connectGuest(domid));
  xen.destroyDomain(domid);
  await client.read("/");
  assert.deepEqual([releases, guest.closed, await client.isIntroduced(domid)], [3, true, false]);
  assert.equal(sim.find(domid), undefined, "xenstored let go of its ring page");
  assert.deepEqual([...xen.pageTypes(bare, gfns(5, 1))], [0]);
});

Deno.test("xenstored's mapping keeps a ring page from being nominated", () => {
  const { sim, introduce } = openStore();
  assert.equal(sim.domain(introduce()).memory.p2m.get(5).frame?.references, 1);
});

Deno.test("requests are steps of the process: they can fail, and a killed process leaves no watch", async () => {
  const { store, sim } = openStore();
  const machine = openSimMachine(sim);
  const client = openXenstore(store.connect(machine));
  machine.faults.failNext("xenstore.WRITE", "ENOMEM");
  await assert.rejects(() => client.write("/a", "1"), (error) => {
    return error instanceof XenstoreError && error.code === "ENOMEM";
  });
  await client.watch("/a", () => {});
  const open = store.openConnections;
  machine.faults.onStep = ({ name }) => name === "xenstore.MKDIR" ? "kill" : undefined;
  await assert.rejects(() => client.mkdir("/b"), XenstoreError);
  assert.equal(store.openConnections, open - 1);
  assert.equal(store.valueAt("/b"), undefined);
  assert.throws(() => store.connect(machine), ProcessKilled);
});
