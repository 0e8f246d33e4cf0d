"""Install Debian 13's package of dist/ in the root that release/try_wheels.py made; serve a route.

By the root's own apt, and purged again.  Needs root and Debian's archive.
"""

from __future__ import annotations

import shutil
import sys
from typing import Final

from release.pythons import DIST, run
from release.trial import try_out
from release.try_wheels import RELEASES

INSTALL: Final = ("install", "-y", "-qq", "--no-install-recommends")


def main() -> None:
    """Print what was tried; exit with the reason if it fails."""
    [root] = [release.root for release in RELEASES if release.suite == "trixie"]
    found = list(DIST.glob("vsockproxy_*~deb13_*.deb"))
    if len(found) != 1:
        sys.exit(f"{len(found)} packages for Debian 13 in {DIST}: run make deb SUITE=trixie")
    shutil.copy(found[0], root / "tmp")
    inside = ("chroot", str(root))
    apt = (*inside, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get")
    run(*apt, "update", "-qq")
    run(*apt, *INSTALL, f"/tmp/{found[0].name}")
    try:
        print(f"Debian 13's package: {try_out('native', [*inside, '/usr/bin/vsockproxy'])}")
    finally:
        run(*apt, "purge", "-y", "-qq", "vsockproxy")


if __name__ == "__main__":
    main()
