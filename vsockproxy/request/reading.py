"""Reading one client's request from its socket, within a time limit and a bound of bytes."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from typing import Literal

import trio

from vsockproxy.config.duration import write_duration
from vsockproxy.config.request import By
from vsockproxy.errors import VsockproxyError
from vsockproxy.request.http_connect import HttpConnect
from vsockproxy.request.http_host import HttpHost
from vsockproxy.request.mux import Mux
from vsockproxy.request.reader import MOST, Asked, Credentials, Reader, Refusal, RequestError
from vsockproxy.request.sni import Sni
from vsockproxy.request.socks5 import Socks5

Check = Callable[[str, str], Awaitable[bool]]
"""Return whether a client's user and password are right."""


class NoRequestError(VsockproxyError):
    """A client sent no request that can be served.

    Attributes:
      reason: ``left``: it has gone without a byte.
      reply: what it is sent before it is closed; empty: nothing.
    """

    def __init__(
        self,
        reason: Literal["malformed", "timeout", "unauthenticated", "left"],
        sentence: str,
        reply: bytes = b"",
    ) -> None:
        self.reason = reason
        self.reply = reply
        super().__init__(sentence)


def new_reader(by: By, first: bytes, *, check: Check | None, guest: str | None) -> Reader:
    """Return the reader for a client; its first bytes tell SOCKS from HTTP."""
    wants_password = check is not None
    match by:
        case "socks5":
            return Socks5(wants_password=wants_password)
        case "http-connect":
            return HttpConnect(wants_password=wants_password)
        case "proxy":
            is_socks = first[:1] in (b"\4", b"\5")
            return (Socks5 if is_socks else HttpConnect)(wants_password=wants_password)
        case "sni":
            return Sni()
        case "http-host":
            return HttpHost()
        case "mux":
            return Mux(guest)


async def read_request(
    sock: socket.socket, by: By, timeout: float, *, check: Check | None, guest: str | None
) -> tuple[Reader, Asked]:
    """Return a client's request, and its reader for the answer.

    ``sock`` may be blocking or not, and stays the caller's.

    Args:
      timeout: seconds in all, however the bytes come.
      check: wants credentials of clients; None wants none.
      guest: the guest whose ports are asked for (``by = "mux"``).

    Raises:
      NoRequestError: there is none.
    """
    with trio.move_on_after(timeout):
        try:
            first = await _receive(sock, MOST)
            reader = new_reader(by, first, check=check, guest=guest)
            return reader, await _read(sock, reader, first, check)
        except OSError as error:
            raise NoRequestError("left", "the client has left") from error
    raise NoRequestError("timeout", f"no complete request within {write_duration(timeout)}")


async def _read(sock: socket.socket, reader: Reader, data: bytes, check: Check | None) -> Asked:
    """Feed a reader ``data`` and what follows until it has a request."""
    received = 0
    while data:
        received += len(data)
        try:
            step = reader.feed(data)
            if isinstance(step, Credentials):
                await _authenticate(reader, step, check)
                step = reader.authenticated()
        except RequestError as error:
            raise NoRequestError("malformed", str(error), reader.output) from error
        reply, reader.output = reader.output, b""
        send_reply(sock, reply)
        if isinstance(step, Asked):
            return step
        if received >= MOST:
            raise NoRequestError("malformed", f"the request is longer than {MOST} bytes")
        data = await _receive(sock, MOST - received)
    if not received:
        raise NoRequestError("left", "the client has left")
    raise NoRequestError("malformed", "the client ended its request too early")


async def _authenticate(reader: Reader, credentials: Credentials, check: Check | None) -> None:
    # Clients may wait for HTTP's challenge: no credentials are not wrong ones.
    if check is None or not credentials.user or not await check(*credentials):
        sentence = "the user or the password is wrong or missing"
        refused = reader.refused(Refusal("unauthenticated", sentence))
        raise NoRequestError("unauthenticated", sentence, reader.output + refused)


async def _receive(sock: socket.socket, room: int) -> bytes:
    while True:
        await trio.lowlevel.wait_readable(sock)
        try:
            return sock.recv(room, socket.MSG_DONTWAIT)
        except BlockingIOError:
            continue


def send_reply(sock: socket.socket, reply: bytes) -> None:
    """Send a client a short answer, for which its socket's buffer always has room.

    Raises OSError where the client has gone, and where it takes nothing.
    """
    if reply and sock.send(reply, socket.MSG_DONTWAIT) < len(reply):
        raise BlockingIOError("the client takes no answer")
