"""systemd's side of the process: the sockets it hands in.

Owns: the protocol of sd_listen_fds_with_names(3).  Its own code, since it is three
variables; knows nothing of routes or trio.
"""

from __future__ import annotations

import errno
import hashlib
import os
import socket
from collections.abc import Mapping
from typing import Final

from vsockproxy.endpoint import FdEndpoint, ListenEndpoint
from vsockproxy.errors import ListenError

FIRST_FD: Final = 3  # SD_LISTEN_FDS_START
_UNNAMED: Final = "unknown"  # what the manual page says of sockets without a name


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
    return f"vsockproxy-listener-{digest}-{index}"
