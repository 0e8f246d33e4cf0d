"""Where the operator's socket is: for the daemon that opens it, and for who looks for it.

Owns: the default places, and whether anybody is there.  Reads no configuration.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from vsockproxy.address.endpoint import UnixEndpoint
from vsockproxy.config.settings import AdminSettings

NAME: Final = "admin.sock"
VARIABLE: Final = "VSOCKPROXY_ADMIN"
"""Names a running daemon's socket."""

_SERVICES: Final = Path("/run")
_OF_A_SERVICE: Final = "vsockproxy*"  # vsockproxy, and vsockproxy-NAME of vsockproxy@NAME


def of_service(settings: AdminSettings, environ: Mapping[str, str]) -> AdminSettings:
    """The settings with ``auto`` resolved: the service manager's folder, or nowhere.

    RUNTIME_DIRECTORY is systemd.exec(5)'s; the first of several.
    """
    if settings.socket != "auto":
        return settings
    folder = environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    return replace(settings, socket=UnixEndpoint(f"{folder}/{NAME}") if folder else None)


def of_user(environ: Mapping[str, str], uid: int) -> Path:
    """The place of a daemon that a user runs by hand."""
    runtime = environ.get("XDG_RUNTIME_DIR")
    if runtime and Path(runtime).is_absolute():
        return Path(runtime, "vsockproxy", NAME)
    return Path("/tmp", f"vsockproxy-{uid}", NAME)  # noqa: S108 - see `is_private`


def is_private(folder: Path, uid: int) -> bool:
    """Whether a folder is the user's and nobody else can write there: /tmp is everybody's."""
    try:
        found = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == uid and not found.st_mode & 0o022


def default_places(environ: Mapping[str, str], uid: int, services: Path = _SERVICES) -> list[Path]:
    """The sockets that are there now, at the places where daemons have them by default."""
    user = of_user(environ, uid)
    places = [user] if is_private(user.parent, uid) else []
    runtime = environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    places += [Path(runtime, NAME)] if runtime else []
    places += sorted(services.glob(f"{_OF_A_SERVICE}/{NAME}"))
    return [place for place in dict.fromkeys(places) if is_socket(place)]


def is_socket(path: Path) -> bool:
    """Whether a socket's file is there, as far as this user can see."""
    try:
        return stat.S_ISSOCK(path.stat().st_mode)
    except OSError:
        return False


def is_live(place: Path) -> bool:
    """Whether somebody listens at a socket, whoever may connect."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(1.0)
        try:
            sock.connect(str(place))
        except OSError as error:
            return error.errno in (errno.EACCES, errno.EPERM, errno.EAGAIN)
        return True


def make_private(folder: Path) -> None:
    """Make a folder for this user alone; raises OSError, also where it is somebody else's."""
    folder.mkdir(mode=0o700, exist_ok=True)
    if not is_private(folder, os.getuid()):
        raise PermissionError(f"{folder} is not this user's alone")
