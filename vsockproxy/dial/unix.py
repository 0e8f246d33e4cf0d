"""Connect to a Unix socket."""

from __future__ import annotations

import errno
import socket
from typing import Final

import trio

from vsockproxy.address.endpoint import UnixEndpoint
from vsockproxy.address.sockaddr import new_socket, unix_address
from vsockproxy.dial.connecting import connected, failed

_FIRST_RETRY: Final = 0.001  # seconds, doubled each time
_LONGEST_RETRY: Final = 0.05


async def connect(sock: socket.socket, path: str, deadline: float) -> None:
    """Connect a new Unix socket, and wait for room in the backlog; raise OSError."""
    address = unix_address(path)
    pause = _FIRST_RETRY
    # EAGAIN means a full backlog, not a connection in progress: the socket never becomes writable.
    while (code := sock.connect_ex(address)) == errno.EAGAIN:
        left = deadline - trio.current_time()
        if left <= 0:
            break
        await trio.sleep(min(pause, left))
        pause = min(2 * pause, _LONGEST_RETRY)
    await connected(sock, code, deadline)


def connect_now(endpoint: UnixEndpoint) -> socket.socket | None:
    """Return a socket connected to a Unix endpoint, without waiting; None if its backlog is full.

    A Unix socket has no options. Raises `DialError`.
    """
    sock = None
    try:
        sock = new_socket(socket.AF_UNIX)
        sock.connect(unix_address(endpoint.path))
    except BlockingIOError:
        assert sock is not None
        sock.close()
        return None
    except OSError as error:
        if sock is not None:
            sock.close()
        raise failed(endpoint, error) from error
    return sock
