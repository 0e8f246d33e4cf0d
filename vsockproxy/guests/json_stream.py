"""JSON documents over a Unix socket, each with a mark at its end: QMP's way, and varlink's.

Owns: the connection, the framing, and the words for a peer that is not there or talks
nonsense.  Knows neither protocol.
"""

from __future__ import annotations

import errno
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import trio

from vsockproxy.guests.answer import GuestError

_LARGEST: Final = 1 << 20  # bytes of a document
_PIECE: Final = 1 << 16

_WHY: Final = {
    errno.ENOENT: "is not there",
    errno.ECONNREFUSED: "is a file that nobody listens at any more",
    errno.EACCES: "does not let this user connect: see its mode and its folders'",
}


class Dialogue:
    """One connection to ``who``, which is for people."""

    def __init__(self, stream: trio.SocketStream, end: bytes, who: str) -> None:
        self.who = who
        self._stream = stream
        self._end = end
        self._heard = b""

    async def say(self, document: dict[str, Any]) -> None:
        """Send a document; raises `GuestError`."""
        try:
            await self._stream.send_all(json.dumps(document).encode() + self._end)
        except trio.BrokenResourceError as error:
            raise self._hung_up() from error

    async def hear(self) -> dict[str, Any]:
        """The next document; raises `GuestError`."""
        while self._end not in self._heard:
            try:
                piece = await self._stream.receive_some(_PIECE)
            except trio.BrokenResourceError as error:
                raise self._hung_up() from error
            if not piece:
                raise self._hung_up()
            self._heard += piece
            if len(self._heard) > _LARGEST:
                raise GuestError(f"{self.who} says more than {_LARGEST} bytes at once")
        text, _, self._heard = self._heard.partition(self._end)
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise self.nonsense() from error
        if not isinstance(document, dict):
            raise self.nonsense()
        return document

    def nonsense(self) -> GuestError:
        """The error for an answer that has not the protocol's form."""
        return GuestError(f"{self.who} does not speak its protocol: is this the right socket?")

    def _hung_up(self) -> GuestError:
        return GuestError(f"{self.who} hung up")


@asynccontextmanager
async def open_dialogue(path: str, end: bytes, who: str) -> AsyncIterator[Dialogue]:
    """A connection to the socket at ``path`` while the block runs; raises `GuestError`."""
    try:
        stream = await trio.open_unix_socket(path)
    except OSError as error:
        why = _WHY.get(error.errno or 0, f"cannot be asked: {error.strerror or error}")
        raise GuestError(f"{who} {why}") from error
    async with stream:
        yield Dialogue(stream, end, who)
