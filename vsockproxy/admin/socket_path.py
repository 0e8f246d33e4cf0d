"""The default places of the control socket: for the daemon and for the commands.

Owns: these places, and whether a daemon listens there.  Reads no configuration.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vsockproxy.address.endpoint import UnixEndpoint
from vsockproxy.config.source import STDIN_NAME
from vsockproxy.errors import AddressError, ListenError

if TYPE_CHECKING:
    from vsockproxy.config.settings import Config

NAME: Final = "admin.sock"
"""The socket's name in a service manager's folder, and the demo's."""

_SOCKETS: Final = "admin*.sock"
_SHARED: Final = ("/tmp", "/dev/shm")  # noqa: S108 - see `is_private`

_SERVICES: Final = Path("/run")
_OF_A_SERVICE: Final = "vsockproxy*"  # vsockproxy, and vsockproxy-NAME of vsockproxy@NAME


class DefaultSocket:
    """The control socket of a daemon that names none: the first place at which it can be bound.

    A reload keeps the place. The daemon binds; the next place follows a bind that failed, so that
    of two daemons that start at once only one gets a name.
    """

    def __init__(
        self,
        environ: Mapping[str, str],
        uid: int,
        services: Path = _SERVICES,
        *,
        failed: Callable[[str], object] = lambda _: None,
    ) -> None:
        """``failed`` is called with the errors of all places once none is left."""
        self._environ = environ
        self._uid = uid
        self._services = services
        self._failed = failed
        self._errors: list[str] = []
        self._places: deque[Path] | None = None  # those that were not tried
        self._chosen: UnixEndpoint | None = None

    def resolve(self, config: Config) -> Config:
        """Return the configuration with ``auto`` replaced by a path, or by no socket."""
        if config.admin.socket != "auto":
            return config
        if self._places is None:
            self._places = deque(self._named(_instance(config.source)))
            self._chosen = self._next(self._places)
        return replace(config, admin=replace(config.admin, socket=self._chosen))

    def after(self, error: ListenError, config: Config) -> Config:
        """Return a resolved configuration with the next place; raise any other endpoint's error."""
        if self._places is None or error.endpoint != self._chosen:
            raise error
        place = Path(self._chosen.path)
        if error.errno == errno.EADDRINUSE and not place.stem.endswith(f"-{os.getpid()}"):
            self._places.appendleft(place.with_name(f"{place.stem}-{os.getpid()}.sock"))
        self._errors.append(error.summary)
        self._chosen = self._next(self._places)
        return replace(config, admin=replace(config.admin, socket=self._chosen))

    def _named(self, instance: str) -> list[Path]:
        runtime = _runtime_folder(self._environ)
        if runtime:
            return [Path(runtime, NAME)]
        folders = daemon_folders(self._environ, self._uid, self._services)
        return [folder / f"admin-{instance}.sock" for folder in folders]

    def _next(self, places: deque[Path]) -> UnixEndpoint | None:
        """Return the next place whose path a socket can have and whose folder is private."""
        while places:
            place = places.popleft()
            try:
                if not _runtime_folder(self._environ):
                    make_private(place.parent)
                return UnixEndpoint(str(place))
            except (OSError, AddressError) as error:
                self._errors.append(str(error))
        self._failed("; ".join(self._errors))
        return None


def _instance(source: str) -> str:
    """Return the name of a daemon: its file's stem, or its command and pid."""
    commands = {"environment": "run", STDIN_NAME: "run", "command line": "forward"}
    return f"{commands[source]}-{os.getpid()}" if source in commands else Path(source).stem


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
