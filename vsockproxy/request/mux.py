r"""A VMM's socket for many guests: ``CONNECT GUEST PORT\n``, or ``CONNECT PORT\n`` for one guest.

The answer is ``OK PORT\n``; a refused client is closed without a word, as VMMs do.
"""

from __future__ import annotations

import re
from typing import Any, Final

from vsockproxy.address.endpoint import GUEST_NAME, PORT_ANY
from vsockproxy.config.request import Request
from vsockproxy.request.reader import Asked, Reader, RequestError, Step

_LINE_MAX: Final = 256
_NUMBERED: Final = r" +([0-9]{1,10})[ \r]*\n"
_PORT: Final = re.compile(f"CONNECT{_NUMBERED}", re.IGNORECASE)
_GUEST_AND_PORT: Final = re.compile(rf"CONNECT +({GUEST_NAME.pattern}){_NUMBERED}", re.IGNORECASE)


class Mux(Reader):
    """Read one line; with ``guest`` it names the port alone."""

    def __init__(self, guest: str | None) -> None:
        super().__init__()
        self._guest = guest
        self._data = b""
        self._port = 0

    def feed(self, data: bytes) -> Step:
        """Take what the client has sent, up to the newline and beyond it."""
        self._data += data
        line, newline, rest = self._data.partition(b"\n")
        if len(line) >= _LINE_MAX:
            raise RequestError(f"the line is longer than {_LINE_MAX} bytes")
        if not newline:
            return None
        return Asked(self._parse((line + newline).decode("ascii", errors="replace")), rest)

    def _parse(self, line: str) -> Request:
        match = (_GUEST_AND_PORT if self._guest is None else _PORT).fullmatch(line)
        if match is None or int(match[match.re.groups]) >= PORT_ANY:
            form = "CONNECT GUEST PORT" if self._guest is None else "CONNECT PORT"
            raise RequestError(f"{line[:64]!r} is not {form}")
        self._port = int(match[match.re.groups])
        return Request(self._guest or match[1].lower(), self._port)

    def accepted(self, address: Any) -> bytes:  # noqa: ARG002 - a VMM's number means little
        """Return the line after which the stream is open."""
        return b"OK %d\n" % self._port
