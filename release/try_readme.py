"""Follow README on a fresh Debian 12, line by line, from the installation to a reload.

Its lines are run as they stand: those of the installation in a copy of the tests' Debian tree, and
those of the service by release/readme_scenario.py, under systemd in User-Mode Linux.  pip has a
folder of wheels for an index.  Needs root, Debian's archive, and what
tests/kernel/test_systemd_pid1.py needs.
"""

from __future__ import annotations

import shutil
import sys
import tomllib
from pathlib import Path
from typing import Final

from release.pythons import HOUSE, REPOSITORY, download, options_for, run
from release.readme import CLONE, lines_after
from release.try_deb import copy_root, run_scenario

BUILD: Final = REPOSITORY / "build" / "readme-trial"


def main() -> None:
    """Print what the scenario prints; exit with status 1 if a line fails."""
    shutil.rmtree(BUILD, ignore_errors=True)
    BUILD.mkdir(parents=True)
    root = copy_root(BUILD)
    try:
        install(root)
        run_scenario("readme_scenario", root, BUILD)
    finally:
        shutil.rmtree(root)


def install(root: Path) -> None:
    """Run the lines of "Use it" in a root, by its own apt and Python."""
    pip = (sys.executable, "-m", "pip")
    download(*pip, options=options_for("3.11", "x86_64"))
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    run(*pip, "download", "--quiet", "--dest", str(HOUSE), *project["build-system"]["requires"])
    shutil.copytree(HOUSE, root / "opt" / "wheels")
    run("git", "clone", "--quiet", str(REPOSITORY), f"{root}{CLONE}")
    inside = ("chroot", str(root), "env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root")
    index = ("PIP_NO_INDEX=1", "PIP_FIND_LINKS=/opt/wheels", "DEBIAN_FRONTEND=noninteractive")
    run(*inside, "apt-get", "update", "-qq")
    for line in lines_after("On Debian 12, as root, in the clone"):
        run(*inside, *index, "sh", "-c", f"cd {CLONE} && {line}")
        print(f"installed: {line}", flush=True)


if __name__ == "__main__":
    main()
