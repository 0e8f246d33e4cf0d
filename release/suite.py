"""Run the sdist's own tests with the oldest or the newest versions of its requirements.

    suite.py oldest|newest PYTHON

The versions are those that the sdist's pyproject.toml allows; the tools of the tests are as new as
they go with them.  The tests of kernels and containers are not run: the gate has them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Final

from release.pythons import DIST, REPOSITORY, find_python, run

BUILD: Final = REPOSITORY / "build" / "suites"
RESOLUTIONS: Final = {"oldest": "lowest-direct", "newest": "highest"}
TESTS: Final = ("-m", "pytest", "-q", "-p", "no:cacheprovider")
ELSEWHERE: Final = ("--ignore=tests/kernel", "--ignore=tests/container")


def main(which: str, version: str) -> None:
    """Exit with the status of the tests."""
    tree = unpack(which)
    python = environment(tree, RESOLUTIONS[which], find_python(version))
    print(run("uv", "pip", "freeze", "--python", python), flush=True)
    # Only the processes of this environment: the tests run programs that it installed.
    environ = {**os.environ, "PATH": f"{Path(python).parent}{os.pathsep}{os.environ['PATH']}"}
    environ.pop("PYTHONPATH", None)
    sys.exit(subprocess.call((python, *TESTS, *ELSEWHERE), cwd=tree, env=environ))


def unpack(name: str) -> Path:
    """Return the folder with the content of dist/'s sdist."""
    sdists = list(DIST.glob("vsockproxy-*.tar.gz"))
    if len(sdists) != 1:
        sys.exit(f"{len(sdists)} sdists in {DIST}: run make wheel")
    place = BUILD / name
    shutil.rmtree(place, ignore_errors=True)
    with tarfile.open(sdists[0]) as archive:
        archive.extractall(place, filter="data")
    [tree] = place.iterdir()
    return tree


def environment(tree: Path, resolution: str, python: str) -> str:
    """Return the Python of a new environment with the sdist and the tools of its tests."""
    home, pins = tree / ".venv", tree / "build" / "pins.txt"
    pins.parent.mkdir()
    run("uv", "venv", "--quiet", "--seed", "--python", python, str(home))
    inside = str(home / "bin" / "python")
    project = str(tree / "pyproject.toml")
    compile_ = ("uv", "pip", "compile", "--quiet", f"--resolution={resolution}", "--upgrade")
    run(*compile_, f"--python={inside}", f"--output-file={pins}", project)
    install = ("uv", "pip", "install", "--quiet", f"--python={inside}", f"--constraints={pins}")
    run(*install, f"--editable={tree}[dev]")
    return inside


if __name__ == "__main__":
    main(*sys.argv[1:])
