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
from vsockproxy.errors import AddressError

if TYPE_CHECKING:
    from vsockproxy.config.settings import Config

NAME: Final = "admin.sock"
"""The socket's name in a service manager's folder, and the demo's."""

_SOCKETS: Final = "admin*.sock"
_SHARED: Final = ("/tmp", "/dev/shm")  # noqa: S108 - see `is_private`

_SERVICES: Final = Path("/run")
_OF_A_SERVICE: Final = "vsockproxy*"  # vsockproxy, and vsockproxy-NAME of vsockproxy@NAME


class DefaultSocket:
    """The control socket of a daemon that names none; chosen once, so that a reload keeps it.

    Attributes:
      error: why there is none; empty before `resolve`, and if there is one.
    """

    def __init__(self, environ: Mapping[str, str], uid: int, services: Path = _SERVICES) -> None:
        self.error = ""
        self._environ = environ
        self._uid = uid
        self._services = services
        self._chosen: UnixEndpoint | None = None
        self._is_chosen = False

    def resolve(self, config: Config) -> Config:
        """Return the configuration with ``auto`` replaced by a path, or by no socket."""
        if config.admin.socket != "auto":
            return config
        if not self._is_chosen:
            self._is_chosen = True
            self._chosen = self._choose(_instance(config.source))
        return replace(config, admin=replace(config.admin, socket=self._chosen))

    def _choose(self, instance: str) -> UnixEndpoint | None:
        """Return the first path at which a socket can be made; else None, and set ``error``."""
        runtime = _runtime_folder(self._environ)
        if runtime:
            places = [Path(runtime, NAME)]
        else:
            folders = daemon_folders(self._environ, self._uid, self._services)
            places = [folder / f"admin-{instance}.sock" for folder in folders]
        errors = []
        for place in places:
            try:
                if not runtime:
                    make_private(place.parent)
                return _usable(place)
            except (OSError, AddressError) as error:
                errors.append(str(error))
        self.error = "; ".join(errors)
        return None


def _instance(source: str) -> str:
    """Return the name of a daemon: its file's stem, or its command and pid."""
    commands = {"environment": "run", "command line": "forward"}
    return f"{commands[source]}-{os.getpid()}" if source in commands else Path(source).stem


def _usable(place: Path) -> UnixEndpoint:
    """Return the endpoint of a path, with the pid added to its name if a daemon listens there.

    Raises:
      OSError: a socket cannot be made in the folder.
      AddressError: the path is too long.
    """
    if is_live(place):
        place = place.with_name(f"{place.stem}-{os.getpid()}.sock")
    endpoint = UnixEndpoint(str(place))
    trial = place.with_name(f".{os.getpid()}")
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.bind(str(trial))
        except OSError as error:
            raise OSError(error.errno, error.strerror or str(error), str(place.parent)) from error
        trial.unlink()
    return endpoint


def daemon_folders(
    environ: Mapping[str, str], uid: int, services: Path = _SERVICES
) -> tuple[Path, ...]:
    """Return the folders for the socket of a daemon without a service manager, in their order."""
    first = services / "vsockproxy" if uid == 0 else of_user(environ, uid).parent
    return tuple(dict.fromkeys((first, *(Path(at, f"vsockproxy-{uid}") for at in _SHARED))))


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
    folders = [of_user(environ, uid).parent, *daemon_folders(environ, uid, services)]
    own = [folder for folder in dict.fromkeys(folders) if is_private(folder, uid)]
    runtime = _runtime_folder(environ)
    own += [Path(runtime)] if runtime else []
    places = [place for folder in own for place in sorted(folder.glob(_SOCKETS))]
    places += sorted(services.glob(f"{_OF_A_SERVICE}/{_SOCKETS}"))
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
