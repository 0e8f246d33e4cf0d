"""Connect one socket of any family: make it, wait for the kernel's answer, translate its error.

Owns: what the kinds of address have in common. The sockets are the standard library's,
non-blocking and close-on-exec.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Awaitable, Callable

import trio

from vsockproxy.address.endpoint import MuxEndpoint, Target, UnixEndpoint
from vsockproxy.address.sockaddr import errno_of, new_socket
from vsockproxy.dial.sockopt import Options, apply
from vsockproxy.errors import DialError, dial_error

Connect = Callable[[socket.socket], Awaitable[None]]
"""Connect a new socket; raise OSError or `DialError`."""


async def open_socket(family: int, connect: Connect, options: Options) -> socket.socket:
    """Return a new socket connected by ``connect``; close it on failure or cancellation.

    Raises OSError, and what ``connect`` raises.
    """
    sock = new_socket(family)
    try:
        apply(sock, family, options)
        await connect(sock)
    except BaseException:
        sock.close()
        raise
    return sock


async def connected(sock: socket.socket, code: int, deadline: float) -> None:
    """Wait for a connect whose errno was ``code``; raise OSError if it fails."""
    if code == errno.EINPROGRESS:
        await wait(trio.lowlevel.wait_writable, sock, deadline)
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code:
        raise OSError(code, os.strerror(code))


async def wait(
    ready: Callable[[socket.socket], Awaitable[None]], sock: socket.socket, deadline: float
) -> None:
    """Wait until ``ready`` returns for a socket; raise TimeoutError at the deadline."""
    with trio.CancelScope(deadline=deadline) as scope:
        await ready(sock)
    if scope.cancelled_caught:
        raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))


def failed(endpoint: Target, error: OSError) -> DialError:
    """Return the error of a dial for what the kernel, or a resolver, said."""
    # connect(2) gives ECONNREFUSED both for a dead socket and for a file that is not a socket.
    if (
        isinstance(endpoint, UnixEndpoint | MuxEndpoint)
        and error.errno == errno.ECONNREFUSED
        and _is_another_file(endpoint.path)
    ):
        return dial_error(endpoint, "not_a_socket", errno=error.errno)
    return dial_error(endpoint, errno_of(error))


def _is_another_file(path: str) -> bool:
    """Return whether a path, which is no abstract name, is a file but not a socket."""
    try:
        return not path.startswith("@") and not stat.S_ISSOCK(os.stat(path).st_mode)  # noqa: PTH116 - Path raises as well
    except OSError:  # it has gone, or may not be read any more
        return False
