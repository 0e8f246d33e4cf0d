"""systemd's side of the process: the sockets it hands in and keeps, and what it is told.

Owns: the protocols of sd_listen_fds_with_names(3) and sd_notify(3), whether the journal
listens, and the names of the sockets in the file descriptor store.  Its own code, since it
is a few variables and one datagram a message; knows nothing of routes or trio.
"""

from __future__ import annotations

import errno
import hashlib
import os
import socket
from array import array
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from time import monotonic_ns
from types import TracebackType
from typing import Final, Self

from vsockproxy.address.endpoint import FdEndpoint, ListenEndpoint
from vsockproxy.errors import ListenError

FIRST_FD: Final = 3  # SD_LISTEN_FDS_START
_UNNAMED: Final = "unknown"  # what the manual page says of sockets without a name
_KEPT: Final = "vsockproxy-listener-"
_NO_ROOM: Final = frozenset({errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS})


def inherited_sockets(environ: Mapping[str, str], pid: int) -> dict[str, list[socket.socket]]:
    """The sockets that systemd handed to process ``pid``, by ``FileDescriptorName=``.

    One name may have several sockets, in the unit's order.  They are non-blocking and
    close-on-exec, and the caller owns them.  Empty when the variables are not there or
    meant for another process; inherited files that are no sockets stay closed to us.

    Raises `ListenError` for variables that contradict themselves or the open files.
    """
    if "LISTEN_FDS" not in environ or environ.get("LISTEN_PID") != str(pid):
        return {}
    count = _count(environ["LISTEN_FDS"])
    names = _names(environ.get("LISTEN_FDNAMES"), count)
    sockets: dict[str, list[socket.socket]] = {}
    for descriptor, name in enumerate(names, FIRST_FD):
        sock = _adopt(descriptor)
        if sock is not None:
            sockets.setdefault(name, []).append(sock)
    return sockets


def is_journal(descriptor: int, environ: Mapping[str, str]) -> bool:
    """Whether the journal reads what is written there: ``JOURNAL_STREAM``, systemd.exec(5)."""
    status = os.fstat(descriptor)
    return environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 8):
        raise _malformed("LISTEN_FDS", f"{text!r} is not a number of sockets")
    return int(text)


def _names(text: str | None, count: int) -> list[str]:
    if text is None or count == 0:
        return [_UNNAMED] * count
    names = text.split(":")
    if len(names) != count:
        raise _malformed("LISTEN_FDNAMES", f"{text!r} has {len(names)} names for {count} sockets")
    return names


def _adopt(descriptor: int) -> socket.socket | None:
    """The socket of an inherited descriptor; None for a file of another sort."""
    try:
        os.set_inheritable(descriptor, False)
        sock = socket.socket(fileno=descriptor)
    except OSError as error:
        if error.errno == errno.ENOTSOCK:
            return None
        raise _malformed(
            "LISTEN_FDS", f"it counts descriptor {descriptor}, which is not open"
        ) from error
    sock.setblocking(False)
    return sock


def _malformed(variable: str, explanation: str) -> ListenError:
    return ListenError(FdEndpoint(variable), "invalid", f"${variable}: {explanation}")


def store_name(endpoint: ListenEndpoint, index: int) -> str:
    """The name under which systemd keeps a listener's socket over a restart.

    An operator's FileDescriptorName= does not look like it.  sd_notify(3), FDNAME=: ASCII,
    no colon, at most 255 characters.
    """
    digest = hashlib.sha256(str(endpoint).encode(errors="surrogateescape")).hexdigest()[:32]
    return f"{_KEPT}{digest}-{index}"


def is_store_name(name: str) -> bool:
    """Whether a socket of this name comes out of the store, not from a socket unit."""
    return name.startswith(_KEPT)


class Notifier:
    """Tells systemd what the service does (sd_notify(3)); without systemd, tells nobody.

    Nothing here raises or blocks.  A change of state and a socket for the store that
    systemd has no room for wait, in order, for the next message or for `flush`; what will
    be said again anyway is dropped.

    Attributes:
      active: whether there is somebody to tell.
      watchdog_seconds: `watchdog` has to come within so many seconds; None for no watchdog.
    """

    def __init__(self, environ: Mapping[str, str], pid: int) -> None:
        """Read the variables that systemd sets for process ``pid``."""
        self._address = _notify_address(environ.get("NOTIFY_SOCKET", ""))
        self.active = self._address is not None
        self.watchdog_seconds = _watchdog_seconds(environ, pid) if self.active else None
        self._waiting: deque[tuple[str, socket.socket | None]] = deque()
        # Made once: a beat must not fail because the descriptor table is full.
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) if self.active else None
        if self._sock is not None:
            self._sock.setblocking(False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._sock is not None:
            self._sock.close()

    def ready(self) -> None:
        """The service has started, or has reloaded."""
        self._tell("READY=1")

    def reloading(self) -> None:
        """A reload begins, which `ready` ends; one message, as Type=notify-reload demands."""
        self._tell(f"RELOADING=1\nMONOTONIC_USEC={monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """The service drains."""
        self._tell("STOPPING=1")

    def fd_store(self, name: str, sock: socket.socket) -> None:
        """Have systemd keep a duplicate of ``sock``, which stays the caller's.

        It comes back by `inherited_sockets` in the next process of the service; of a
        socket that it keeps already there is no second.
        """
        # FDPOLL=0: by default the store drops what poll(2) calls broken.
        self._tell(f"FDSTORE=1\nFDNAME={name}\nFDPOLL=0", sock)

    def fd_remove(self, name: str) -> None:
        """Have systemd close what it keeps under this name."""
        self._tell(f"FDSTOREREMOVE=1\nFDNAME={name}")

    def status(self, text: str) -> bool:
        """Say in a line how things are; whether it arrived."""
        return self._mention(f"STATUS={' '.join(text.split())}")

    def watchdog(self) -> bool:
        """The service is well; whether it arrived."""
        return self._mention("WATCHDOG=1")

    def extend_timeout(self, seconds: float) -> bool:
        """Starting, or stopping, takes so long from now; whether it arrived."""
        return self._mention(f"EXTEND_TIMEOUT_USEC={round(seconds * 1_000_000)}")

    def flush(self) -> bool:
        """Send what waits; whether nothing waits any more."""
        while self._waiting:
            try:
                self._send(*self._waiting[0])
            except OSError as error:
                if error.errno in _NO_ROOM:
                    return False
            # What was refused for good is gone as well: there is nobody else to tell.
            self._waiting.popleft()
        return True

    def _tell(self, message: str, sock: socket.socket | None = None) -> None:
        if self.active:
            self._waiting.append((message, sock))
            self.flush()

    def _mention(self, message: str) -> bool:
        if self.active and self.flush():
            with suppress(OSError):
                self._send(message, None)
                return True
        return False

    def _send(self, message: str, sock: socket.socket | None) -> None:
        assert self._sock is not None
        rights = [] if sock is None else [sock.fileno()]
        control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", rights))] if rights else []
        # Not connected: systemd may make its socket anew.
        self._sock.sendmsg([message.encode()], control, 0, self._address)


def _notify_address(text: str) -> str | None:
    """$NOTIFY_SOCKET's path, or its name in the abstract namespace."""
    if text.startswith("@"):
        return "\0" + text[1:]
    return text if text.startswith("/") else None


def _watchdog_seconds(environ: Mapping[str, str], pid: int) -> float | None:
    text = environ.get("WATCHDOG_USEC", "")
    if environ.get("WATCHDOG_PID", str(pid)) != str(pid) or not text.isdecimal():
        return None
    return int(text) / 1_000_000 or None
