#!/bin/sh
# build.sh OUT: makes the dom0 of every host:
#   dom0.img     disk image (ext4)          id_ed25519   key of dom0's root
#   vmlinux      Debian's kernel, unpacked  known_hosts  dom0's host key, for the name "lab"
#   initrd       finds the disk             modules/     kernel modules for guests; modules/order is the order of
                                            loading them, modules/order-disk of those for a disk
set -eu
here=$(dirname "$(readlink -f "$0")")
out=$1
tree=$out/tree

# The kernel's drivers for devices that an emulated machine lacks are left out, as are documents.
mmdebstrap --quiet --variant=minbase --aptopt='APT::Install-Recommends "false"' \
  --dpkgopt='path-exclude=/etc/kernel/postinst.d/initramfs-tools' \
  --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
  --dpkgopt='path-exclude=/usr/share/locale/*' \
  --dpkgopt='path-exclude=/lib/modules/*/kernel/sound/*' \
  --dpkgopt='path-exclude=/lib/modules/*/kernel/drivers/gpu/*' \
  --dpkgopt='path-exclude=/lib/modules/*/kernel/drivers/media/*' \
  --dpkgopt='path-exclude=/lib/modules/*/kernel/drivers/infiniband/*' \
  --dpkgopt='path-exclude=/lib/modules/*/kernel/drivers/staging/*' \
  --dpkgopt='path-exclude=/lib/modules/*/kernel/drivers/iio/*' \
  --dpkgopt='path-exclude=/lib/modules/*/kernel/drivers/scsi/*' \
  --dpkgopt='path-exclude=/lib/modules/*/kernel/drivers/usb/*' \
  --dpkgopt='path-exclude=/lib/modules/*/kernel/drivers/hwmon/*' \
  --dpkgopt='path-exclude=/lib/modules/*/kernel/drivers/net/wireless/*' \
  --include=linux-image-amd64,xen-utils-4.17,xenstore-utils,kmod,openssh-server \
  --include=iproute2,nftables,dnsmasq-base,iputils-ping,tcpdump,socat,curl,ca-certificates,libssl3,openssl \
  --include=e2fsprogs,procps,less,busybox-static \
  bookworm "$tree"

cp -r "$here/rootfs/." "$tree/"
chmod 755 "$tree"/usr/local/sbin/*
echo dom0 > "$tree/etc/hostname"
echo 127.0.0.1 localhost dom0 > "$tree/etc/hosts"
# Each remote command starts root's shell: bash would cost 50 ms more under emulation.
chroot "$tree" usermod --shell /bin/sh root
rm -f "$tree"/etc/ssh/ssh_host_*_key*
ssh-keygen -q -t ed25519 -N '' -C lab-host -f "$tree/etc/ssh/ssh_host_ed25519_key"
ssh-keygen -q -t ed25519 -N '' -C lab -f "$out/id_ed25519"
mkdir -p -m 700 "$tree/root/.ssh"
cp "$out/id_ed25519.pub" "$tree/root/.ssh/authorized_keys"
echo "lab $(cut -d' ' -f1,2 "$tree/etc/ssh/ssh_host_ed25519_key.pub")" > "$out/known_hosts"

# The kernel, unpacked: Xen and xl would unpack it (xz) under emulation, at every boot and every guest's creation. Offset and
# length of the packed kernel are in the setup header (Documentation/x86/boot.rst: setup_sects, payload_offset, payload_length).
version=$(ls "$tree/lib/modules")
kernel=$tree/boot/vmlinuz-$version
number() { od -An -t "u$2" -j "$1" -N "$2" "$kernel" | tr -d ' '; }
start=$(( ($(number 497 1) + 1) * 512 + $(number 584 4) ))
tail -c +$((start + 1)) "$kernel" | head -c "$(number 588 4)" | xz -dc --single-stream > "$out/vmlinux"
rm -f "$tree"/boot/initrd.img*
# Guests start it from dom0's own disk: libxl maps it page by page, slow over 9p.
mkdir -p "$tree/usr/lib/lab"
cp "$out/vmlinux" "$tree/usr/lib/lab/"

# modules NAME...: the named modules' files, each after those it needs.
modules() {
  for name; do
    chroot "$tree" modprobe -S "$version" --show-depends "$name" | sed -n "s#^insmod \([^ ]*\).*#$tree\1#p"
  done | awk '!seen[$0]++'
}
mkdir "$out/modules"
guest_modules() {
  order=$out/modules/$1
  shift
  modules "$@" | while read -r file; do
    cp "$file" "$out/modules/"
    basename "$file" >> "$order"
  done
}
guest_modules order xen-netfront xen-blkfront
guest_modules order-disk crc32c_generic ext4

grep -q xen-netfront "$out/modules/order"

# An initrd that mounts the disk and nothing else.
ramdisk=$out/ramdisk
mkdir -p "$ramdisk/bin" "$ramdisk/modules" "$ramdisk/root" "$ramdisk/dev" "$ramdisk/proc"
cp "$tree/bin/busybox" "$ramdisk/bin/"
modules virtio_pci virtio_blk crc32c_generic ext4 | while read -r file; do
  cp "$file" "$ramdisk/modules/"
  basename "$file" >> "$ramdisk/modules/order"
done
grep -q virtio_blk "$ramdisk/modules/order"
cat > "$ramdisk/init" <<'INIT'
#!/bin/busybox sh
b=/bin/busybox
$b mount -t devtmpfs none /dev
while read -r name; do $b insmod "/modules/$name"; done < /modules/order
n=0
while ! [ -b /dev/vda ] && [ $n -lt 200 ]; do $b usleep 50000; n=$((n + 1)); done
$b mount -t ext4 -o noatime /dev/vda /root
$b mount -o move /dev /root/dev
exec $b switch_root /root /bin/busybox init
INIT
chmod 755 "$ramdisk/init"
(cd "$ramdisk" && busybox find . | busybox cpio -o -H newc) > "$out/initrd"

mke2fs -q -t ext4 -L dom0 -d "$tree" "$out/dom0.img" 6G
rm -rf "$tree" "$ramdisk"
