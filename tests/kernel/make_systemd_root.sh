#!/bin/sh
# Makes a Debian tree with systemd in .cache/systemd-root (or the folder named) for
# test_systemd_pid1.py.  Wants root and debootstrap; takes a minute, once.
set -eu
folder=${1:-$(dirname "$0")/../../.cache/systemd-root}
[ -e "$folder" ] && exit
part=$folder.part
rm -rf "$part"
mkdir -p "$part"
# procps for kill(1); python3 for the libraries that any interpreter wants.
debootstrap --variant=minbase --include=systemd,systemd-sysv,kmod,iproute2,procps,python3 bookworm "$part"
rm -rf "$part"/var/cache/apt/* "$part"/var/lib/apt/lists/*
# Where systemd.py mounts what it brings.
mkdir -p "$part/lib/modules"
mv "$part" "$folder"
