"""The lines of a VMM's CONNECT/OK handshake, without I/O: both halves.

Owns: the two lines, their cap, and `LineReader`, which takes one line out of a stream and
not a byte more.  Knows nothing of sockets or time: `mux` is the client, the demo's
embedded guest is the server.

    client: CONNECT <guest port>\\n        server: OK <number>\\n       then bytes both ways

Whoever refuses closes the connection without a word.  The client sends its line in one
write and nothing more before the OK: VMMs drop a request that comes in two pieces, and
some lose what follows it.  The number is the host side's port (Firecracker, Cloud
Hypervisor) or the guest's (vhost-device-vsock): it is for people, never to be compared.
"""

from __future__ import annotations

import re
from typing import Final

LINE_MAX: Final = 32
"""The longest line, newline included; the longest valid one has 19 bytes, VMMs' buffers 32."""

_PORT_MAX: Final = 0xFFFFFFFF
_REPLY: Final = re.compile(rb"OK ([0-9]{1,20})[ \r]*\n")
# The verb's case is free, and VMMs strip the end of the line (Kata says "connect").
_REQUEST: Final = re.compile(rb"CONNECT +([0-9]{1,10})[ \r]*\n", re.IGNORECASE)


class MalformedLineError(ValueError):
    """The peer sent no valid line; ``line`` has the bytes that were read."""

    def __init__(self, line: bytes) -> None:
        self.line = line
        super().__init__(f"{line!r} is not a line of the vsock-mux handshake")


class LineReader:
    """Collect one line from pieces of any size.

    Peek at up to `room` bytes, `feed` them, then consume as many as it says: the bytes
    behind the newline belong to the stream.
    """

    __slots__ = ("_data",)

    def __init__(self) -> None:
        self._data = b""

    @property
    def room(self) -> int:
        """Return how many more bytes the line may have."""
        return LINE_MAX - len(self._data)

    @property
    def done(self) -> bool:
        """Whether the line is complete."""
        return self._data.endswith(b"\n")

    @property
    def line(self) -> bytes:
        """Return the line's bytes read so far, with the newline once `done`."""
        return self._data

    def feed(self, data: bytes) -> int:
        """Take the line's part of ``data``; return its number of bytes.

        Raises `MalformedLineError` when the line grows beyond `LINE_MAX`.
        """
        if self.done:
            return 0
        taken = data[: data.find(b"\n") + 1] or data
        if len(taken) > self.room or (len(taken) == self.room and taken[-1:] != b"\n"):
            raise MalformedLineError((self._data + taken)[:LINE_MAX])
        self._data += taken
        return len(taken)


def connect_request(port: int) -> bytes:
    """Return the client's line, which requests a guest's port."""
    return b"CONNECT %d\n" % port


def ok_reply(number: int) -> bytes:
    """Return the server's line, after which the stream is open."""
    return b"OK %d\n" % number


def parse_reply(line: bytes) -> int:
    """Return the number of a complete ``OK`` line; raise `MalformedLineError`."""
    match = _REPLY.fullmatch(line)
    if match is None:
        raise MalformedLineError(line)
    return int(match[1])


def parse_request(line: bytes) -> int:
    """Return the port of a complete ``CONNECT`` line; raise `MalformedLineError`."""
    match = _REQUEST.fullmatch(line)
    if match is None or int(match[1]) > _PORT_MAX:
        raise MalformedLineError(line)
    return int(match[1])
