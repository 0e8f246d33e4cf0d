"""Build the sdist and every wheel into dist/, on one machine and without a compiler of it.

The package ziglang compiles the pump for each C library and processor; auditwheel checks that it
asks for nothing newer than its tag promises.  The portable wheel has no pump in C.  twine checks
that an index takes the metadata and can show the readme.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Final

REPOSITORY: Final = Path(__file__).parents[1]
DIST: Final = REPOSITORY / "dist"
BUILD: Final = REPOSITORY / "build" / "wheels"

TARGETS: Final = {
    "manylinux_2_17_x86_64": "x86_64-linux-gnu.2.17",
    "manylinux_2_17_aarch64": "aarch64-linux-gnu.2.17",
    "musllinux_1_2_x86_64": "x86_64-linux-musl",
    "musllinux_1_2_aarch64": "aarch64-linux-musl",
}
"""The tag of each wheel with the pump in C, and zig's name of what it is compiled for."""


def main() -> None:
    """Build everything again, from the sdist alone."""
    for folder in (DIST, BUILD):
        shutil.rmtree(folder, ignore_errors=True)
    os.environ.setdefault("SOURCE_DATE_EPOCH", _last_commit())
    sdist = build_sdist()
    for tag, target in TARGETS.items():
        build_native(sdist, tag, target)
    build_portable(sdist)
    files = sorted(DIST.iterdir())
    _run("twine", "check", "--strict", *map(str, files))
    for file in files:
        print(f"{file.stat().st_size / 1024:6.0f} KiB  {file.name}")


def build_sdist() -> Path:
    """Return the sdist; fail if a file of the repository is not in it."""
    # setuptools would also pack what an earlier build listed there.
    shutil.rmtree(REPOSITORY / "vsockproxy.egg-info", ignore_errors=True)
    _run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", str(DIST))
    [sdist] = DIST.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    if missing := set(_git("ls-files").splitlines()) - packed:
        sys.exit(f"wheels: the sdist is not complete: add to MANIFEST.in: {sorted(missing)}")
    return sdist


def build_native(sdist: Path, tag: str, target: str) -> None:
    """Build the wheel with the pump in C for a target, with the tag checked."""
    compiler = f"{sys.executable} -m ziglang cc -target {target}"
    environ = {"CC": compiler, "LDSHARED": f"{compiler} -shared -s", "_PYTHON_HOST_PLATFORM": tag}
    wheel = _wheel(sdist, BUILD / tag, **environ)
    before = set(DIST.iterdir())
    # This machine's libraries are not the target's.  musl's is called libc.so by zig; musl's
    # loader takes every such name for itself.
    options = ("--ldpaths", "", "--exclude", "libc.so", "--wheel-dir", str(DIST))
    _run("auditwheel", "repair", *options, str(wheel))
    [repaired] = set(DIST.iterdir()) - before
    if not re.search(rf"-cp311-abi3-(.*\.)?{tag}\.whl", repaired.name):
        sys.exit(f"wheels: {repaired.name} is not for {tag} and the stable ABI")


def build_portable(sdist: Path) -> None:
    """Build the wheel without the pump in C, as where there is no compiler."""
    wheel = _wheel(sdist, DIST, CC="false")
    if not wheel.name.endswith("-py3-none-any.whl"):
        sys.exit(f"wheels: {wheel.name} was built without a compiler, but is not py3-none-any")


def _wheel(sdist: Path, folder: Path, **environ: str) -> Path:
    before = set(folder.glob("*.whl"))
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation")
    _run(*pip, "--no-cache-dir", "--wheel-dir", str(folder), str(sdist), **environ)
    [wheel] = set(folder.glob("*.whl")) - before
    return wheel


def _last_commit() -> str:
    return _git("log", "-1", "--format=%ct").strip()


def _git(*words: str) -> str:
    line = ["git", "-C", str(REPOSITORY), *words]
    return subprocess.run(line, check=True, capture_output=True, text=True).stdout


def _run(*line: str, **environ: str) -> None:
    print("+", *line, flush=True)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(line, cwd=REPOSITORY, check=True, env={**os.environ, "PATH": path, **environ})


if __name__ == "__main__":
    main()
