/** What a lab is made of, each built once. */
import { fileURLToPath } from "node:url";
import { artefact, cacheFolder } from "./cache.ts";
import { installPackages } from "./packages.ts";

/** Folders of the cache. */
export interface Images {
  /** `xen`. */
  readonly xen: string;
  /** `dom0.img`, `vmlinux`, `initrd`, `id_ed25519`, `known_hosts`. */
  readonly dom0: string;
  /** `initramfs.gz`, `lab-guest-shell`, `lab-poke`. */
  readonly guest: string;
}

function here(path: string): string {
  return fileURLToPath(new URL(path, import.meta.url));
}

/** Installs and builds what is missing; minutes the first time, no time later. */
export async function buildImages(): Promise<Images> {
  await installPackages();
  await Deno.mkdir(cacheFolder(), { recursive: true });
  const [xen, dom0] = await Promise.all([
    artefact({ name: "xen", script: here("xen/build.sh"), args: [], inputs: [], key: [], takes: "about 3 minutes" }),
    artefact({
      name: "dom0",
      script: here("dom0/build.sh"),
      args: [],
      inputs: [here("dom0/rootfs")],
      key: [],
      takes: "about 2 minutes",
    }),
  ]);
  const client = here("../../agent/guest");
  const guest = await artefact({
    name: "guest",
    script: here("guest/build.sh"),
    args: [dom0, client],
    inputs: [
      ...["init", "shell.c", "selfcheck.c", "selfcheck_mark.h", "xenbus.h"].map((file) => here(`guest/${file}`)),
      ...["guest_shell.c", "poke.c"].map((file) => here(`dom0/${file}`)),
      `${client}/sf`,
      `${client}/clone.d`,
    ],
    key: [dom0.slice(dom0.lastIndexOf("/") + 1)],
    takes: "about 10 seconds",
  });
  return { xen, dom0, guest };
}
