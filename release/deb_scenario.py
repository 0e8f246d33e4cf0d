"""The life of the Debian package on a host; runs as root under systemd, by release/try_deb.py.

    python3 -m release.deb_scenario FOLDER      (with old.deb and new.deb)

Only the standard library, for it runs on the host's own Python.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from time import monotonic, sleep
from typing import Final

from tests.kernel.echo_service import Address, connect, load, round_trip, serve

CONFIG: Final = Path("/etc/vsockproxy/config.toml")
ROUTE: Final = '[forward]\n8080 = "1:9000"\n[defaults]\ndrain_timeout = "25s"\n'
FRONT: Final[Address] = (socket.AF_INET, ("127.0.0.1", 8080))
SERVICE: Final[Address] = (socket.AF_VSOCK, (1, 9000))
DPKG: Final = ("dpkg", "--force-unsafe-io")
"""Without the wait for a disk after each file, which takes minutes in this kernel."""

STREAMS: Final = 50
PATIENCE: Final = 300.0

NOT_OURS: Final = (
    *("/dev", "/mnt", "/opt", "/proc", "/root", "/sys", "/tmp", "/var/cache", "/var/log"),
    *("/var/lib/dpkg", "/var/lib/systemd", "/var/tmp", "/run/systemd", "/run/log", "/run/dbus"),
)
"""Folders in which dpkg, systemd and this scenario leave files."""


def main(folder: Path) -> None:
    """Print a line for each step; exit with the reason at the first that fails."""
    old, new = str(folder / "old.deb"), str(folder / "new.deb")
    subprocess.run(["modprobe", "vsock_loopback"], check=True)
    serve(SERVICE)
    before = files()
    dpkg("--install", old)
    expect(show("ActiveState") == "inactive", "an installation starts nothing")
    CONFIG.write_text(ROUTE)
    run("systemctl", "enable", "--now", "vsockproxy")
    with load(FRONT, FRONT) as outcomes:
        for package, name in ((new, "upgrade"), (old, "downgrade")):
            replace(package, name)
    expect(set(outcomes[FRONT]) == {"ok"}, f"every client was served: {dict(outcomes[FRONT])}")
    expect(CONFIG.read_text() == ROUTE, "the configuration was kept")
    reject(new)
    dpkg("--remove", "vsockproxy")
    expect(show("ActiveState") == "inactive" and CONFIG.exists(), "a removal stops the daemon")
    dpkg("--purge", "vsockproxy")
    left = sorted(files() - before)
    expect(not left, f"a purge leaves nothing: {left}")


def replace(package: str, name: str) -> None:
    """Install another version; streams that are open at the restart go on to their end."""
    pid, streams = show("MainPID"), [connect(FRONT) for _ in range(STREAMS)]
    answers = [round_trip(stream) for stream in streams]
    installation = subprocess.Popen((*DPKG, "--install", package), stdout=subprocess.DEVNULL)
    began = monotonic()
    while show("ActiveState") != "deactivating":
        expect(monotonic() - began < PATIENCE, f"the {name} restarts the daemon", quiet=True)
        sleep(0.05)
    for stream in streams:
        answers.append(round_trip(stream))
        stream.close()
    expect(installation.wait() == 0 and show("MainPID") not in (pid, "0"), f"{name}: restarted")
    expect(answers == [b"hello"] * 2 * STREAMS, f"{name}: {STREAMS} open streams went on")


def reject(package: str) -> None:
    """Install a version that rejects the file, then do what docs/upgrade.md says.

    dpkg shows the error, and the old process goes on; with the file of that version the new one
    serves.
    """
    CONFIG.write_text(f"{ROUTE}key_of_a_newer_version = 1\n")
    pid, output = show("MainPID"), dpkg("--install", package)
    expect("unknown key" in output and "was not restarted" in output, "a rejected file is shown")
    expect(show("MainPID") == pid, "with a rejected file the old process goes on")
    CONFIG.write_text(ROUTE)
    run("systemctl", "restart", "vsockproxy")
    with connect(FRONT) as stream:
        answer = round_trip(stream)
    served = answer == b"hello" and show("MainPID") not in (pid, "0")
    expect(served, "with the file put back, a restart serves")


def files() -> set[str]:
    """Return the path of every file of the host but for `NOT_OURS`."""
    found = set[str]()
    for folder, folders, names in os.walk("/"):
        folders[:] = [name for name in folders if str(Path(folder, name)) not in NOT_OURS]
        found |= {str(Path(folder, name)) for name in (*folders, *names)}
    # The user stays; shadow's tools keep a copy of each file that they change.  systemd keeps the
    # folder, empty, in which dynamic users had theirs.
    copies = {f"/etc/{name}-" for name in ("passwd", "group", "shadow", "gshadow")}
    return found - copies - {"/run/private"}


def dpkg(*words: str) -> str:
    """Run dpkg, and return its output."""
    return run(*DPKG, *words)


def show(name: str) -> str:
    """Return a property of the service."""
    return run("systemctl", "show", "--value", "--property", name, "vsockproxy").strip()


def run(*line: str) -> str:
    """Run a command, and return its output; exit with it if it fails."""
    done = subprocess.run(
        line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    expect(done.returncode == 0, f"{' '.join(line)}\n{done.stdout}", quiet=True)
    return done.stdout


def expect(holds: bool, what: str, *, quiet: bool = False) -> None:
    """Print what was tried; exit if it does not hold."""
    if not holds:
        sys.exit(f"failed: {what}")
    if not quiet:
        print(what, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
