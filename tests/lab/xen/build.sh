#!/bin/sh
# build.sh OUT: makes OUT/xen, Debian 12's Xen with memory paging switched on (Debian's own binary lacks it).
# The source comes through an apt configuration of its own: the machine's is not touched.
set -eu
out=$1
work=$out/work
mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$work/parts" "$work/src"
echo "deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian bookworm main" \
  > "$work/sources.list"
cd "$work/src"
set -- -q -o "Dir::Etc::SourceList=$work/sources.list" -o "Dir::Etc::SourceParts=$work/parts" \
  -o "Dir::State::Lists=$work/lists" -o "Dir::Cache=$work/cache" -o APT::Sandbox::User=root
apt-get "$@" update
apt-get "$@" source --download-only xen
dpkg-source -x xen_*.dsc xen
cd xen/xen
make defconfig
printf 'CONFIG_EXPERT=y\nCONFIG_UNSUPPORTED=y\nCONFIG_MEM_PAGING=y\n' >> .config
make olddefconfig
grep -q '^CONFIG_MEM_PAGING=y' .config
make -j2 build
# Unpacked it is the 32-bit ELF that QEMU's multiboot loader takes.
gzip -dc xen.gz > "$out/xen"
cp .config "$out/config"
rm -rf "$work"
