"""Connect to a guest's port through its VMM's socket: send CONNECT, wait for OK.

`pump/_native/dial.c` does the same for direct routes.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress
from functools import partial

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
from vsockproxy.dial.unanswered import UNANSWERED
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
    unix.meet_vmm(sock)
    if passed is not None:
        passed()
    try:
        sock.send(connect_request(endpoint.port))  # whole: the buffer is empty
        if endpoint.handshake == "none":
            return
        number = await _answer(sock, endpoint, min(deadline, trio.current_time() + patience))
    except (BrokenPipeError, ConnectionResetError) as error:
        raise dial_error(endpoint, "closed_before_ok", errno=error.errno) from error
    except MalformedLineError as error:
        raise dial_error(endpoint, "protocol", repr(error.line)) from error
    if assigned is not None:
        assigned(number)


def await_late_answer(descriptor: int) -> None:
    """Take over the socket of a dial that was given up, and close it after the VMM's answer."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, descriptor)
    UNANSWERED.get().keep(sock, partial(_read_line, reply=LineReader()))


async def _answer(sock: socket.socket, endpoint: MuxEndpoint, deadline: float) -> int:
    """Return the number in the VMM's OK; given up before it, leave the socket to `Unanswered`."""
    reply = LineReader()

    async def read_line(sock: socket.socket) -> None:
        try:
            await _read_line(sock, reply)
        except trio.Cancelled:
            UNANSWERED.get().keep(sock, partial(_read_line, reply=reply))
            raise

    await wait(read_line, sock, deadline)
    if not reply.line:
        raise dial_error(endpoint, "closed_before_ok")
    return parse_reply(reply.line)


async def _read_line(sock: socket.socket, reply: LineReader) -> None:
    """Read a VMM's answer up to its newline or its end; raise OSError and `MalformedLineError`."""
    while not reply.done:
        await trio.lowlevel.wait_readable(sock)
        with suppress(BlockingIOError):
            data = sock.recv(reply.room, socket.MSG_PEEK)
            if not data:
                return
            sock.recv(reply.feed(data))
