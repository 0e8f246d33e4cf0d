"""The interface to systemd: inherited and stored sockets, notifications, the journal.

Owns: the protocols of sd_listen_fds_with_names(3) and sd_notify(3), the detection of the
journal, and the names of sockets in the file descriptor store.  Needs no library: the protocols
are a few variables and one datagram a message.  Knows nothing of routes or trio.
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
_UNNAMED: Final = "unknown"  # the manual page's name of an unnamed socket
_KEPT: Final = "vsockproxy-listener-"
_NO_ROOM: Final = frozenset({errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS})


def inherited_sockets(environ: Mapping[str, str], pid: int) -> dict[str, list[socket.socket]]:
    """Return the sockets that systemd passed to process ``pid``, by ``FileDescriptorName=``.

    A name may have several sockets, in the unit's order.  The result is empty if the variables
    are unset or meant for another process.  Inherited files that are not sockets are ignored.

    *Resource handling*: the caller owns the sockets, which are non-blocking and close-on-exec.

    Raises: `ListenError` for variables that contradict each other or the open files.
    """
    if "LISTEN_FDS" not in environ or environ.get("LISTEN_PID") != str(pid):
        return {}
    count = _count(environ["LISTEN_FDS"])
    names = _names(environ.get("LISTEN_FDNAMES"), count)
    sockets: dict[str, list[socket.socket]] = {}
    for descriptor, name in enumerate(names, FIRST_FD):
        sock = _inherited_socket(descriptor)
        if sock is not None:
            sockets.setdefault(name, []).append(sock)
    return sockets


def is_journal(descriptor: int, environ: Mapping[str, str]) -> bool:
    """Return whether the journal reads a descriptor: ``JOURNAL_STREAM``, systemd.exec(5)."""
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


def _inherited_socket(descriptor: int) -> socket.socket | None:
    """Return the socket of an inherited descriptor; None if it is not a socket."""
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
    """Return the name under which systemd stores a listener's socket over a restart.

    It cannot be confused with an operator's FileDescriptorName=.  sd_notify(3), FDNAME=: ASCII,
    no colon, at most 255 characters.
    """
    digest = hashlib.sha256(str(endpoint).encode(errors="surrogateescape")).hexdigest()[:32]
    return f"{_KEPT}{digest}-{index}"


def is_store_name(name: str) -> bool:
    """Return whether a socket of this name is from the fd store, not from a socket unit."""
    return name.startswith(_KEPT)


class Notifier:
    """Notifies systemd of the service's state (sd_notify(3)); without systemd, does nothing.

    No method raises or blocks.  If systemd's socket is full, changes of state and sockets for the
    store are queued, in order, until the next message or `flush`; messages that are repeated
    anyway, such as the watchdog's, are dropped.

    Attributes:
      active: whether systemd expects notifications.
      watchdog_seconds: the interval within which `watchdog` must be called; None for no watchdog.
    """

    def __init__(self, environ: Mapping[str, str], pid: int) -> None:
        """Read the variables that systemd sets for process ``pid``."""
        self._address = _notify_address(environ.get("NOTIFY_SOCKET", ""))
        self.active = self._address is not None
        self.watchdog_seconds = _watchdog_seconds(environ, pid) if self.active else None
        self._queued: deque[tuple[str, socket.socket | None]] = deque()
        # Opened once: a watchdog message must not fail because the descriptor table is full.
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
        """Report that the service has started, or has reloaded."""
        self._send_or_queue("READY=1")

    def reloading(self) -> None:
        """Report the start of a reload, which `ready` ends.

        Both assignments are in one message, as Type=notify-reload requires.
        """
        self._send_or_queue(f"RELOADING=1\nMONOTONIC_USEC={monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """Report that the service drains."""
        self._send_or_queue("STOPPING=1")

    def fd_store(self, name: str, sock: socket.socket) -> None:
        """Store a duplicate of ``sock`` in systemd; ``sock`` stays the caller's.

        `inherited_sockets` returns it in the next process of the service.  A socket that is
        stored already is not duplicated again.
        """
        # FDPOLL=0: by default the store discards a socket with EPOLLHUP or EPOLLERR.
        self._send_or_queue(f"FDSTORE=1\nFDNAME={name}\nFDPOLL=0", sock)

    def fd_remove(self, name: str) -> None:
        """Remove the sockets of this name from the store."""
        self._send_or_queue(f"FDSTOREREMOVE=1\nFDNAME={name}")

    def status(self, text: str) -> bool:
        """Send a line of status; return whether it was sent."""
        return self._send_or_drop(f"STATUS={' '.join(text.split())}")

    def watchdog(self) -> bool:
        """Send a life sign; return whether it was sent."""
        return self._send_or_drop("WATCHDOG=1")

    def extend_timeout(self, seconds: float) -> bool:
        """Ask for this time to start or stop, from now; return whether it was sent."""
        return self._send_or_drop(f"EXTEND_TIMEOUT_USEC={round(seconds * 1_000_000)}")

    def flush(self) -> bool:
        """Send the queued messages; return whether the queue is empty."""
        while self._queued:
            try:
                self._send(*self._queued[0])
            except OSError as error:
                if error.errno in _NO_ROOM:
                    return False
            # A message that fails for another reason is dropped.
            self._queued.popleft()
        return True

    def _send_or_queue(self, message: str, sock: socket.socket | None = None) -> None:
        if self.active:
            self._queued.append((message, sock))
            self.flush()

    def _send_or_drop(self, message: str) -> bool:
        if self.active and self.flush():
            with suppress(OSError):
                self._send(message, None)
                return True
        return False

    def _send(self, message: str, sock: socket.socket | None) -> None:
        assert self._sock is not None
        rights = [] if sock is None else [sock.fileno()]
        control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", rights))] if rights else []
        # Not connected: systemd may replace its socket.
        self._sock.sendmsg([message.encode()], control, 0, self._address)


def _notify_address(text: str) -> str | None:
    """Return the path of $NOTIFY_SOCKET, or its abstract name; None for neither."""
    if text.startswith("@"):
        return "\0" + text[1:]
    return text if text.startswith("/") else None


def _watchdog_seconds(environ: Mapping[str, str], pid: int) -> float | None:
    text = environ.get("WATCHDOG_USEC", "")
    if environ.get("WATCHDOG_PID", str(pid)) != str(pid) or not text.isdecimal():
        return None
    return int(text) / 1_000_000 or None
