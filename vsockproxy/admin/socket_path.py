"""The default places of the control socket: for the daemon and for the commands.

Owns: these places, and whether a daemon listens there.  Reads no configuration.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vsockproxy.address.endpoint import UnixEndpoint

if TYPE_CHECKING:
    from vsockproxy.config.process import AdminSettings

NAME: Final = "admin.sock"

_SERVICES: Final = Path("/run")
_OF_A_SERVICE: Final = "vsockproxy*"  # vsockproxy, and vsockproxy-NAME of vsockproxy@NAME


def of_service(settings: AdminSettings, environ: Mapping[str, str]) -> AdminSettings:
    """Return the settings with ``auto`` resolved: in the service manager's folder, or no socket."""
    if settings.socket != "auto":
        return settings
    folder = _runtime_folder(environ)
    return replace(settings, socket=UnixEndpoint(f"{folder}/{NAME}") if folder else None)


def _runtime_folder(environ: Mapping[str, str]) -> str:
    """Return systemd.exec(5)'s RUNTIME_DIRECTORY, the first of several; empty if there is none."""
    return environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]


def of_user(environ: Mapping[str, str], uid: int) -> Path:
    """Return the path of the control socket of a daemon that a user starts without systemd."""
    runtime = environ.get("XDG_RUNTIME_DIR")
    if runtime and Path(runtime).is_absolute():
        return Path(runtime, "vsockproxy", NAME)
    return Path("/tmp", f"vsockproxy-{uid}", NAME)  # noqa: S108 - see `is_private`


def is_private(folder: Path, uid: int) -> bool:
    """Return whether only the user can write to a folder: in /tmp, others can make it first."""
    try:
        found = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == uid and not found.st_mode & 0o022


def default_places(environ: Mapping[str, str], uid: int, services: Path = _SERVICES) -> list[Path]:
    """Return the sockets that exist now at the default places."""
    user = of_user(environ, uid)
    places = [user] if is_private(user.parent, uid) else []
    runtime = _runtime_folder(environ)
    places += [Path(runtime, NAME)] if runtime else []
    places += sorted(services.glob(f"{_OF_A_SERVICE}/{NAME}"))
    return [place for place in dict.fromkeys(places) if is_socket(place)]


def is_socket(path: Path) -> bool:
    """Return whether a path is a socket that this user can see."""
    try:
        return stat.S_ISSOCK(path.stat().st_mode)
    except OSError:
        return False


def is_live(place: Path) -> bool:
    """Return whether a process listens at a socket, even if this user may not connect."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(1.0)
        try:
            sock.connect(str(place))
        except OSError as error:
            return error.errno in (errno.EACCES, errno.EPERM, errno.EAGAIN)
        return True


def make_private(folder: Path) -> None:
    """Make a folder that only this user can write to.

    Raises:
      OSError: it cannot be made, or another user can write to it.
    """
    folder.mkdir(mode=0o700, exist_ok=True)
    if not is_private(folder, os.getuid()):
        raise PermissionError(f"{folder} is not this user's alone")
