"""Build the Debian package of a release from the wheel of dist/: release/deb.py [SUITE] [VERSION].

The package has its own virtual environment in /usr/lib/vsockproxy, for that release's Python.
Needs debhelper, and that Python for the byte code; nothing of the package is run.  VERSION is for
tests of an upgrade; else it is the wheel's.
"""

from __future__ import annotations

import os
import shutil
import sys
from email.utils import formatdate
from pathlib import Path
from typing import Final

from release.pythons import DIST, REPOSITORY, find_python, find_wheel, install_into, run
from vsockproxy.cli.program import completion

SUITES: Final = {"bookworm": ("3.11", "deb12"), "trixie": ("3.13", "deb13")}
"""The Python of each release, and what its packages have in their version."""

HOME: Final = "/usr/lib/vsockproxy"

PROGRAM: Final = f"""\
#!{HOME}/bin/python3 -I
from vsockproxy.__main__ import main

main()
"""

UNITS: Final = {
    "modules-load.d": "usr/lib/modules-load.d",
    "sysusers.d": "usr/lib/sysusers.d",
    "tmpfiles.d": "usr/lib/tmpfiles.d",
}

COMPLETIONS: Final = {
    "bash": "bash-completion/completions/vsockproxy",
    "zsh": "zsh/vendor-completions/_vsockproxy",
    "fish": "fish/vendor_completions.d/vsockproxy.fish",
}


def build(suite: str, version: str | None = None) -> Path:
    """Return the package in dist/."""
    python, mark = SUITES[suite]
    wheel = find_wheel("manylinux*x86_64")
    version = f"{version or wheel.name.split('-')[1]}-1~{mark}"
    source = REPOSITORY / "build" / "deb" / f"vsockproxy-{version}"
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(REPOSITORY / "release" / "debian", source / "debian")
    fill(source / "tree", python, wheel)
    write_metadata(source / "debian", suite, python, version)
    run("dpkg-buildpackage", "--build=binary", "--no-sign", "--no-check-builddeps", cwd=source)
    [package] = source.parent.glob(f"vsockproxy_{version}_*.deb")
    return Path(shutil.copy(package, DIST))


def fill(tree: Path, python: str, wheel: Path) -> None:
    """Lay out what the package installs."""
    environment(tree / HOME[1:], python, wheel)
    program = tree / "usr/bin/vsockproxy"
    write(program, PROGRAM)
    program.chmod(0o755)
    shutil.copytree(REPOSITORY / "man", tree / "man", ignore=shutil.ignore_patterns("*.py", "__*"))
    etc = tree / "etc/vsockproxy"
    etc.mkdir(parents=True)
    shutil.copy(REPOSITORY / "config/minimal.toml", etc / "config.toml")
    units = tree / "lib/systemd/system"
    units.mkdir(parents=True)
    for unit in (REPOSITORY / "systemd").glob("vsockproxy*"):
        shutil.copy(unit, units)
    for folder, place in UNITS.items():
        shutil.copytree(REPOSITORY / "systemd" / folder, tree / place)
    for shell, name in COMPLETIONS.items():
        write(tree / "usr/share" / name, completion(shell))


def environment(home: Path, python: str, wheel: Path) -> None:
    """Make a virtual environment of the release's Python, with byte code and without pip."""
    packages = home / f"lib/python{python}/site-packages"
    install_into(packages, wheel, python, "x86_64")
    for name in ("bin", "share"):
        shutil.rmtree(packages / name, ignore_errors=True)
    (home / "bin").mkdir()
    (home / "bin/python3").symlink_to(f"/usr/bin/python{python}")
    write(home / "pyvenv.cfg", f"home = /usr/bin\nversion = {python}\n")
    # By content, not by time: a file's time depends on the build.
    compiled = ("-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash")
    run(find_python(python), *compiled, "-s", str(home), "-p", HOME, str(packages))


def write_metadata(debian: Path, suite: str, python: str, version: str) -> None:
    """Write the changelog, the copyright file and the bounds of the Python."""
    stamp = formatdate(float(os.environ.get("SOURCE_DATE_EPOCH") or _last_commit()))
    author = "The vsockproxy developers <vsockproxy@example.org>"
    text = "  * Changes: /usr/share/doc/vsockproxy/changelog.gz"
    write(
        debian / "changelog",
        f"vsockproxy ({version}) {suite}; urgency=medium\n\n{text}\n\n -- {author}  {stamp}\n",
    )
    shutil.copy(REPOSITORY / "CHANGELOG.md", debian.parent)
    major, minor = python.split(".")
    bounds = f"python3 (>= {python}), python3 (<< {major}.{int(minor) + 1})"
    control = debian / "control"
    write(control, control.read_text().replace("${python:Depends}", bounds))


def write(path: Path, text: str) -> None:
    """Write a file, and create its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _last_commit() -> str:
    return run("git", "log", "-1", "--format=%ct").strip()


if __name__ == "__main__":
    print(build(*(sys.argv[1:] or ["bookworm"])))
