"""Connect to a guest's port through its VMM's socket: send CONNECT, wait for OK."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress

import trio

from vsockproxy.address.endpoint import MuxEndpoint
from vsockproxy.dial import unix
from vsockproxy.dial.connecting import wait
from vsockproxy.dial.mux_line import (
    LineReader,
    MalformedLineError,
    connect_request,
    parse_reply,
)
from vsockproxy.errors import dial_error


async def connect(
    sock: socket.socket,
    *,
    endpoint: MuxEndpoint,
    deadline: float,
    patience: float,
    assigned: Callable[[int], object] | None,
    passed: Callable[[], object] | None,
) -> None:
    """Connect a new Unix socket to the endpoint's guest.

    ``patience`` is in seconds, from CONNECT to OK; see `dial.dial` for ``assigned`` and
    ``passed``. Raises OSError and `DialError`.
    """
    await unix.connect(sock, endpoint.path, deadline)
    if passed is not None:
        passed()
    try:
        sock.send(connect_request(endpoint.port))  # whole: the buffer is empty
        if endpoint.handshake == "none":
            return
        number = await _read_ok(sock, endpoint, min(deadline, trio.current_time() + patience))
    except (BrokenPipeError, ConnectionResetError) as error:
        raise dial_error(endpoint, "closed_before_ok", errno=error.errno) from error
    except MalformedLineError as error:
        raise dial_error(endpoint, "protocol", repr(error.line)) from error
    if assigned is not None:
        assigned(number)


async def _read_ok(sock: socket.socket, endpoint: MuxEndpoint, deadline: float) -> int:
    reply = LineReader()
    while not reply.done:
        await wait(trio.lowlevel.wait_readable, sock, deadline)
        with suppress(BlockingIOError):
            data = sock.recv(reply.room, socket.MSG_PEEK)
            if not data and not reply.line:
                raise dial_error(endpoint, "closed_before_ok")
            if not data:
                raise MalformedLineError(reply.line)
            sock.recv(reply.feed(data))
    return parse_reply(reply.line)
