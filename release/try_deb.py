"""Install, upgrade, downgrade, remove and purge the Debian package of dist/ under systemd.

Boots a writable copy of the tests' Debian tree in User-Mode Linux, where release/deb_scenario.py
runs with clients all the while.  The older package is the same with an older version.  Needs root,
debhelper, and what tests/kernel/test_systemd_pid1.py needs.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Final, NoReturn

from release.deb import build
from release.pythons import DIST, REPOSITORY, run
from tests.kernel import boot
from tests.kernel.systemd import SCRATCH, command_script, find_root, kernel_line

BUILD: Final = REPOSITORY / "build" / "deb-trial"
OLDER: Final = "0.0.1"
TIMEOUT: Final = 900.0

INIT: Final = f"""\
mount -t proc proc /proc
mount -t sysfs sysfs /sys
for folder in /run /tmp; do mount -t tmpfs tmpfs $folder; done
mkdir -p /opt/repository /run/systemd/system
mount -t hostfs -o ro,{REPOSITORY} host /opt/repository
mount -t hostfs -o ro,/usr/lib/uml/modules host /lib/modules
cat >/run/systemd/system/scenario.service <<END
[Service]
Type=oneshot
TimeoutStartSec=infinity
Environment=PYTHONPATH=/opt/repository PYTHONDONTWRITEBYTECODE=1
ExecStart=/bin/sh {SCRATCH}/command
END
: >/etc/machine-id
exec /lib/systemd/systemd
"""


def main() -> None:
    """Print what the scenario prints; exit with status 1 if it failed."""
    shutil.rmtree(BUILD, ignore_errors=True)
    BUILD.mkdir(parents=True)
    shutil.move(build("bookworm", OLDER), BUILD / "old.deb")
    shutil.copy(find_new(), BUILD / "new.deb")
    root = copy_root(BUILD)
    try:
        run_scenario("deb_scenario", root, BUILD)
    finally:
        shutil.rmtree(root)


def copy_root(build: Path) -> Path:
    """Return a copy of the tests' Debian tree, which is the caller's to write to and remove."""
    root = build / "root"
    run("cp", "-a", str(find_root()), str(root))
    return root


def run_scenario(name: str, root: Path, build: Path) -> NoReturn:
    """Boot ``root`` with systemd, run a module of release/ there, and exit with its status."""
    (build / "init").write_text(INIT)
    scenario = ["/usr/bin/python3", "-m", f"release.{name}", SCRATCH]
    (build / "command").write_text(command_script(scenario))
    done = boot.run(kernel_line(root, build, "1G", "rw"), build, TIMEOUT)
    print(done.output, end="")
    sys.exit(done.status)


def find_new() -> Path:
    """Return the package for Debian 12 in dist/; exit if there is none."""
    found = list(DIST.glob("vsockproxy_*~deb12_*.deb"))
    if len(found) != 1:
        sys.exit(f"{len(found)} packages for Debian 12 in {DIST}: run make wheel deb")
    return found[0]


if __name__ == "__main__":
    main()
