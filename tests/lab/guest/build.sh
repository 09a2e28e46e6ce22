#!/bin/sh
# build.sh OUT DOM0 [CLIENT]: makes what guests boot and what drives them, from the dom0 artefact in DOM0:
#   initramfs.gz       busybox, the xenstore shell, the self-check, and the guest client in folder CLIENT (`sf`, `clone.d/`)
#   lab-guest-shell, lab-poke   programs for dom0
set -eu
here=$(dirname "$(readlink -f "$0")")
out=$1
dom0=$2
client=${3:-}
tree=$out/tree
mkdir -p "$tree/bin" "$tree/sbin" "$tree/usr/bin" "$tree/usr/sbin" "$tree/lib" "$tree/etc/snowflock/clone.d" "$tree/root"
compile() { gcc -std=gnu11 -O2 -Wall -Wextra -Werror -static -s -o "$2" "$1"; }
compile "$here/shell.c" "$tree/usr/bin/lab-shell"
compile "$here/selfcheck.c" "$tree/usr/bin/selfcheck"
compile "$here/../dom0/guest_shell.c" "$out/lab-guest-shell"
compile "$here/../dom0/poke.c" "$out/lab-poke"
cp "$(command -v busybox)" "$tree/bin/busybox"
busybox --list-full | while read -r applet; do
  mkdir -p "$tree/$(dirname "$applet")"
  [ -e "$tree/$applet" ] || ln -s /bin/busybox "$tree/$applet"
done
# busybox's own power-off asks its own init; here the first program is a script.
for name in poweroff reboot halt; do
  rm -f "$tree/sbin/$name"
  printf '#!/bin/sh\nexec /bin/busybox %s -f\n' "$name" > "$tree/sbin/$name"
  chmod 755 "$tree/sbin/$name"
done
cp -r "$dom0/modules" "$tree/lib/modules"
echo 'root::0:0:root:/root:/bin/sh' > "$tree/etc/passwd"
echo 'root:x:0:' > "$tree/etc/group"
cp "$here/init" "$tree/init"
chmod 755 "$tree/init"
if [ -n "$client" ] && [ -e "$client/sf" ]; then
  cp "$client/sf" "$tree/usr/bin/sf"
  chmod 755 "$tree/usr/bin/sf"
  if [ -d "$client/clone.d" ]; then
    cp -r "$client/clone.d/." "$tree/etc/snowflock/clone.d/"
    chmod -R a+rx "$tree/etc/snowflock/clone.d"
  fi
fi
(cd "$tree" && busybox find . | busybox cpio -o -H newc | gzip -1) > "$out/initramfs.gz"
rm -rf "$tree"
