"""Before the transfer: a client's PROXY header or first byte, and the header for a target.

Owns: the waiting, within a time limit, and the step between a header's addresses and those
of the socket module.  The bytes are `proxy_protocol`'s.
"""

from __future__ import annotations

import errno
import os
import socket
from contextlib import suppress
from typing import Any, Final

import trio

from vsockproxy.address.endpoint import AF_VSOCK, Target
from vsockproxy.address.sockaddr import errno_of
from vsockproxy.config.access import ip_of
from vsockproxy.config.by_name import ByName
from vsockproxy.connection import Connection
from vsockproxy.errors import VsockproxyError, dial_error
from vsockproxy.relay import proxy_protocol
from vsockproxy.relay.proxy_protocol import (
    Header,
    HeaderReader,
    InetAddress,
    MalformedHeaderError,
    Source,
    UnixAddress,
    VsockAddress,
)

_AF_UNIX: Final[int] = getattr(socket, "AF_UNIX", -1)


class NoHeaderError(VsockproxyError):
    """A client sent no valid PROXY header.

    Attributes:
      slow: its time was over first.
      left: it left without having sent a byte.
    """

    def __init__(self, *, slow: bool = False, left: bool = False) -> None:
        self.slow = slow
        self.left = left
        super().__init__("no PROXY header in time" if slow else "no PROXY header")


async def read_header(sock: socket.socket, timeout: float) -> Header:
    """Return a client's header, read within ``timeout`` seconds; later bytes stay in the socket.

    ``sock`` may be blocking or not.  Raises `NoHeaderError`.
    """
    reader = HeaderReader()
    with trio.move_on_after(timeout):
        try:
            while not reader.done:
                await trio.lowlevel.wait_readable(sock)
                _read_some(sock, reader)
            return proxy_protocol.parse_header(reader.data)
        except MalformedHeaderError as error:
            raise NoHeaderError from error
        except (EOFError, OSError) as error:
            raise NoHeaderError(left=not reader.data) from error
    raise NoHeaderError(slow=True)


def _read_some(sock: socket.socket, reader: HeaderReader) -> None:
    with suppress(BlockingIOError):
        data = sock.recv(reader.room, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        if not data:
            raise EOFError
        sock.recv(reader.feed(data))


async def has_sent(sock: socket.socket) -> bool:
    """Wait for a client's first byte, which stays in the socket; return False if it left before.

    ``sock`` may be blocking or not.
    """
    while True:
        await trio.lowlevel.wait_readable(sock)
        try:
            return bool(sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        except BlockingIOError:
            continue
        except OSError as error:
            return error.errno == errno.EOPNOTSUPP  # Hyper-V's sockets cannot peek


async def send_header(
    sock: socket.socket, endpoint: Target | ByName, header: bytes, deadline: float
) -> None:
    """Send a header to a newly connected target, until ``deadline``.

    ``deadline`` is in trio's time.  Raises `DialError`; the socket stays the caller's.
    """
    with trio.CancelScope(deadline=deadline):
        try:
            while header := header[_send_some(sock, header) :]:
                await trio.lowlevel.wait_writable(sock)
        except OSError as error:
            raise dial_error(endpoint, errno_of(error)) from error
        return
    raise dial_error(endpoint, "header_not_taken")


def _send_some(sock: socket.socket, data: bytes) -> int:
    try:
        return sock.send(data)
    except BlockingIOError:
        return 0


def header_of(connection: Connection, client: socket.socket) -> Header:
    """Return the header for a target: the addresses in the client's header, else its socket's.

    A Unix client without a header has none: receivers close a connection with AF_UNIX addresses.
    """
    destination = connection.destination
    if destination is None:
        if connection.family == _AF_UNIX:
            return Header()
        destination = client.family, client.getsockname()
    return Header(_to_header(connection.family, connection.address), _to_header(*destination))


def follow_header(connection: Connection, header: Header) -> None:
    """Give a connection the addresses in a header, if it has any."""
    if header.source is not None:
        connection.family, connection.address = _from_header(header.source)
        if header.destination is not None:
            connection.destination = _from_header(header.destination)


def _to_header(family: int, address: Any) -> Source | None:
    if family in (socket.AF_INET, socket.AF_INET6):
        return InetAddress(ip_of(address[0]), address[1])
    if family == AF_VSOCK:
        return VsockAddress(*address)
    if family == _AF_UNIX:
        return UnixAddress(address if isinstance(address, bytes) else os.fsencode(address))
    return None


def _from_header(source: Source) -> tuple[int, Any]:
    if isinstance(source, InetAddress):
        family = socket.AF_INET if source.ip.version == 4 else socket.AF_INET6
        return family, (str(source.ip), source.port)
    if isinstance(source, VsockAddress):
        return AF_VSOCK, tuple(source)
    return _AF_UNIX, os.fsdecode(source.path)  # bytes would be a sockaddr of the kernel's
