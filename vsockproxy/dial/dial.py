"""Dial a target: connect to each kind of address within a time limit.

Owns: connecting, and the translation of the kernel's errors into `DialError`. Knows no route,
bytes or counters.

The sockets are the standard library's, non-blocking and close-on-exec, and belong to the caller
once returned. A dial that succeeds immediately is not a checkpoint.
"""

from __future__ import annotations

import math
import socket
from collections.abc import Callable
from functools import partial
from typing import Final

import trio

from vsockproxy.address.endpoint import (
    CID_ANY,
    Dialable,
    MuxEndpoint,
    TcpEndpoint,
    UnixEndpoint,
    VsockEndpoint,
)
from vsockproxy.config.destination import Destinations
from vsockproxy.config.reach import Reach
from vsockproxy.config.settings import Policy
from vsockproxy.connection import VsockConnection
from vsockproxy.dial import mux, tcp, unix, vsock
from vsockproxy.dial.connecting import failed, open_socket
from vsockproxy.dial.sockopt import Options, target_options
from vsockproxy.errors import AddressError

PLAIN: Final = target_options(Policy())
"""The socket options of the default policy."""

ANYWHERE: Final = Destinations()
"""Every address is allowed."""


async def dial(
    endpoint: Dialable,
    timeout: float,
    *,
    options: Options = PLAIN,
    handshake_timeout: float | None = None,
    destinations: Destinations | Reach = ANYWHERE,
    assigned: Callable[[int], object] | None = None,
    passed: Callable[[], object] | None = None,
    chosen_by: str | None = None,
) -> socket.socket:
    """Return a socket connected to ``endpoint``, which the caller owns.

    Args:
      timeout: seconds for the whole dial, a name's resolution and a handshake included.
      options: socket options, set before the socket connects.
      handshake_timeout: seconds between CONNECT and OK, where that is less than ``timeout``.
      destinations: the allowed addresses of a TCP endpoint, and of those its name resolves to.
      assigned: called with the number in a vsock-mux's OK; its meaning differs between VMMs.
      passed: called after each step but the last: a name is resolved, a VMM's socket connected.
      chosen_by: the client who has chosen the name of a TCP endpoint, as `Peer.source`.

    Raises:
      DialError: no socket stays open; neither does one when the dial is cancelled.
    """
    deadline = trio.current_time() + timeout
    try:
        match endpoint:
            case TcpEndpoint():
                return await tcp.dial(
                    endpoint,
                    deadline,
                    options,
                    destinations,
                    passed=passed,
                    chosen_by=chosen_by,
                )
            case VsockEndpoint():
                return await vsock.dial(endpoint, timeout, deadline, options)
            case UnixEndpoint():
                connect = partial(unix.dial, endpoint=endpoint, deadline=deadline)
            case MuxEndpoint():
                patience = math.inf if handshake_timeout is None else handshake_timeout
                connect = partial(
                    mux.connect,
                    endpoint=endpoint,
                    deadline=deadline,
                    patience=patience,
                    assigned=assigned,
                    passed=passed,
                )
        return await open_socket(socket.AF_UNIX, connect, options)
    except OSError as error:
        raise failed(endpoint, error) from error


async def open_vsock_stream(
    cid: int, port: int, *, to_host: bool = False, timeout: float = 5.0
) -> trio.SocketStream:
    """Return a trio stream to a vsock port; ``timeout`` is in seconds.

    ``to_host`` as in `VsockEndpoint`. Raises `DialError`, and `AddressError` for numbers beyond
    32 bits and for ANY.
    """
    sock, _ = await _dial_port(cid, port, to_host, timeout)
    return trio.SocketStream(trio.socket.from_stdlib_socket(sock))


async def open_vsock_connection(
    cid: int, port: int, *, to_host: bool = False, timeout: float = 5.0
) -> VsockConnection:
    """Return a connection to a vsock port, which the caller owns; else as `open_vsock_stream`.

    Its socket is non-blocking.
    """
    return VsockConnection(*await _dial_port(cid, port, to_host, timeout))


async def _dial_port(
    cid: int, port: int, to_host: bool, timeout: float
) -> tuple[socket.socket, VsockEndpoint]:
    await trio.lowlevel.checkpoint()
    endpoint = VsockEndpoint(cid, port, to_host)
    if CID_ANY in (endpoint.cid, endpoint.port):
        raise AddressError(f"cannot dial {endpoint}: name one CID and one port, not any")
    return await dial(endpoint, timeout), endpoint
