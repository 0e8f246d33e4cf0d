"""Build one file, for a quick trial on a Linux host with Python 3.11 or newer: release/onefile.py.

The compiled libraries of every Python are in it side by side: their names have the Python's tag.
At its first start it unpacks itself into ~/.shiv, or into $SHIV_ROOT.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Final

from release.pythons import DIST, REPOSITORY, find_python, find_wheel, install_into, run
from release.trial import try_out

BUILD: Final = REPOSITORY / "build" / "onefile"
PYTHONS: Final = ("3.11", "3.12", "3.13", "3.14")
TRIED: Final = PYTHONS[:3]


def main() -> None:
    """Build it, then serve a route with it on each Python of this machine."""
    shutil.rmtree(BUILD, ignore_errors=True)
    file = build()
    print(f"{file.stat().st_size / 1024:6.0f} KiB  {file.name}")
    os.environ["SHIV_ROOT"] = str(BUILD / "unpacked")
    for version in TRIED:
        print(try_out("native", [find_python(version), str(file)]), flush=True)


def build() -> Path:
    """Return the file in dist/."""
    wheel, site = find_wheel("manylinux*x86_64"), BUILD / "site"
    for version in PYTHONS:
        install_into(BUILD / version, wheel, version, "x86_64")
        shutil.copytree(BUILD / version, site, dirs_exist_ok=True)
    for name in ("bin", "share"):
        shutil.rmtree(site / name, ignore_errors=True)
    file = DIST / f"vsockproxy-{wheel.name.split('-')[1]}-linux-x86_64.pyz"
    start = ("--console-script=vsockproxy", "--python=/usr/bin/env python3")
    line = (f"--site-packages={site}", "--compressed", "--reproducible", f"--output-file={file}")
    run(sys.executable, "-m", "shiv", *line, *start)
    return file


if __name__ == "__main__":
    main()
