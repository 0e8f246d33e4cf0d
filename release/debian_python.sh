#!/bin/sh
# Unpack a Debian release's Python into a folder, for any processor; nothing of it is run.
#   debian_python.sh SUITE ARCHITECTURE PYTHON FOLDER
# Needs root and debootstrap.
set -eu
suite=$1 architecture=$2 python=$3 folder=$4
[ -e "$folder" ] && exit
part=$folder.part
rm -rf "$part"
mkdir -p "$part"
debootstrap --download-only --variant=minbase --arch="$architecture" \
    --include="$python" "$suite" "$part" >"$part.log" 2>&1 || { tail "$part.log" >&2; exit 1; }
for package in "$part"/var/cache/apt/archives/*.deb; do
    dpkg-deb --fsys-tarfile "$package" | tar -x -C "$part" --keep-directory-symlink
done
rm -rf "$part"/var/cache/apt/archives "$part.log"
mv "$part" "$folder"
