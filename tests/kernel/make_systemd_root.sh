#!/bin/sh
# Make a Debian tree with systemd in .cache/systemd-root, or in the folder given, for
# test_systemd_pid1.py.  Needs root and debootstrap; takes a minute, once.
set -eu
folder=${1:-$(dirname "$0")/../../.cache/systemd-root}
[ -e "$folder" ] && exit
part=$folder.part
rm -rf "$part"
mkdir -p "$part"
# procps has kill(1); python3 brings the libraries that this repository's interpreter needs.
debootstrap --variant=minbase --include=systemd,systemd-sysv,kmod,iproute2,procps,python3 bookworm "$part"
rm -rf "$part"/var/cache/apt/* "$part"/var/lib/apt/lists/*
# A mount point for systemd.py: the tree is read-only later.
mkdir -p "$part/lib/modules"
mv "$part" "$folder"
