"""JSON documents over a Unix socket, each ended by a delimiter, as in QMP and varlink.

Owns: the connection, the framing, and the errors for a peer that is missing or sends something
else.  Knows neither protocol.
"""

from __future__ import annotations

import errno
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import trio

from vsockproxy.address.sockaddr import new_socket, unix_address
from vsockproxy.guests.answer import GuestError

_LARGEST: Final = 1 << 20  # bytes of a document
_PIECE: Final = 1 << 16

_CAUSES: Final = {
    errno.ENOENT: "does not exist",
    errno.ECONNREFUSED: "is a stale socket: nothing listens there",
    errno.EACCES: "denies this user: check its mode and those of its folders",
    errno.EAGAIN: "has no room for another client: end the one that uses it",
}


class JsonStream:
    """One connection; ``name`` is the peer's name in errors."""

    def __init__(self, stream: trio.SocketStream, end: bytes, name: str) -> None:
        self.name = name
        self._stream = stream
        self._end = end
        self._received = b""

    async def send(self, document: dict[str, Any]) -> None:
        """Send a document; raise `GuestError`."""
        try:
            await self._stream.send_all(json.dumps(document).encode() + self._end)
        except trio.BrokenResourceError as error:
            raise self._closed() from error

    async def receive(self) -> dict[str, Any]:
        """Return the next document; raise `GuestError`."""
        while self._end not in self._received:
            try:
                piece = await self._stream.receive_some(_PIECE)
            except trio.BrokenResourceError as error:
                raise self._closed() from error
            if not piece:
                raise self._closed()
            self._received += piece
            if len(self._received) > _LARGEST:
                raise GuestError(f"{self.name} sent a document of more than {_LARGEST} bytes")
        text, _, self._received = self._received.partition(self._end)
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise self.malformed() from error
        if not isinstance(document, dict):
            raise self.malformed()
        return document

    def malformed(self) -> GuestError:
        """Return the error for an answer that does not follow the protocol."""
        return GuestError(f"{self.name} does not speak its protocol: is this the right socket?")

    def _closed(self) -> GuestError:
        return GuestError(f"{self.name} closed the connection")


@asynccontextmanager
async def open_json_stream(path: str, end: bytes, name: str) -> AsyncIterator[JsonStream]:
    """Connect to the socket at ``path`` and close it after the block; raise `GuestError`.

    ``end`` is the delimiter.
    """
    await trio.lowlevel.checkpoint()
    sock = new_socket(socket.AF_UNIX)
    try:
        sock.connect(unix_address(path))  # connected at once, or EAGAIN for a full backlog
    except OSError as error:
        sock.close()
        cause = _CAUSES.get(error.errno or 0, f"cannot be asked: {error.strerror or error}")
        raise GuestError(f"{name} {cause}") from error
    async with trio.SocketStream(trio.socket.from_stdlib_socket(sock)) as stream:
        yield JsonStream(stream, end, name)
