#!/bin/sh
# Unpack Debian's kernel into .cache/kernel, or into the folder given, for the host-and-guest
# tests; nothing is installed.  The generic image has 9p and vhost_vsock, the cloud image does not.
set -eu
folder=${1:-$(dirname "$0")/../../.cache/kernel}
package=$(apt-cache depends linux-image-amd64 | sed -n 's/.*Depends: //p' | head -n 1)
version=${package#linux-image-}
if [ ! -e "$folder/boot/vmlinuz-$version" ]; then
    download=$(mktemp -d)
    trap 'rm -rf "$download"' EXIT
    (cd "$download" && apt-get -o APT::Sandbox::User=root download "$package")
    rm -rf "$folder"
    mkdir -p "$folder"
    dpkg --fsys-tarfile "$download"/*.deb | tar -x -C "$folder" ./boot ./lib
fi
depmod -b "$folder" "$version"
