#!/bin/bash
# Make the base of the container tests without an image registry, in .cache/container or in the
# folder given: a Debian tree with Python and a compiler, and the wheels of the locked
# requirements.  Existing files are kept.  Needs root, debootstrap and pip.
set -euo pipefail
repository=$(cd "$(dirname "$0")/../.." && pwd)
folder=${1:-$repository/.cache/container}
python=3.11 # bookworm's
pip=$repository/.venv/bin/pip
[ -x "$pip" ] || pip=pip3
mkdir -p "$folder"

if [ ! -e "$folder/base.tar" ]; then
    tree=$(mktemp -d "$folder/tree.XXXXXX")
    trap 'rm -rf "$tree"' EXIT
    chmod 755 "$tree"
    debootstrap --variant=minbase --include=python3-venv,python3-dev,gcc,libc6-dev \
        bookworm "$tree" >"$folder/debootstrap.log" || { tail -n 20 "$folder/debootstrap.log"; exit 1; }
    rm -rf "$tree"/var/cache/apt/archives/*.deb "$tree"/var/lib/apt/lists/* "$tree"/usr/share/doc
    tar -C "$tree" -cf "$folder/base.tar.new" .
    mv "$folder/base.tar.new" "$folder/base.tar"
fi

locked=$repository/release/requirements.txt
build=$(python3 - "$repository/pyproject.toml" <<'PYTHON'
import sys, tomllib

with open(sys.argv[1], "rb") as file:
    print("\n".join([*tomllib.load(file)["build-system"]["requires"], "wheel"]))
PYTHON
)
wanted=$(cat "$locked"; echo "$build")
if [ "$(cat "$folder/wheels/wanted" 2>/dev/null)" != "$wanted" ]; then
    rm -rf "$folder/wheels"
    mkdir "$folder/wheels"
    mapfile -t lines <<<"$build"
    # For the Debian tree's Python, not for the one that runs here.
    download=("$pip" download --quiet --dest "$folder/wheels" --only-binary :all:
        --python-version "$python" --implementation cp --abi "cp${python/./}" --abi abi3 --abi none
        --platform "manylinux2014_$(uname -m)" --platform "manylinux_2_28_$(uname -m)")
    "${download[@]}" --require-hashes --requirement "$locked"
    "${download[@]}" "${lines[@]}"
    printf '%s\n' "$wanted" >"$folder/wheels/wanted"
fi
