"""An HTTP proxy's requests: CONNECT (RFC 9110, section 9.3.6), and one request in absolute form.

The request in absolute form (RFC 9112, section 3.2.2) goes on with a path, ``Connection: close``
and without the headers for proxies, so that the target ends the connection after its response.
"""

from __future__ import annotations

import base64
import re
from typing import Any, Final

import h11

from vsockproxy.config.request import Request
from vsockproxy.request.http_head import HttpReader, header
from vsockproxy.request.reader import Asked, Credentials, RequestError, Step, split_authority

# RFC 9110, section 7.6.1; those that the header Connection names are dropped as well.
_HOP_BY_HOP: Final = frozenset(
    b"connection keep-alive proxy-connection proxy-authorization te upgrade host".split()
)
_FRAMING: Final = frozenset({b"content-length", b"transfer-encoding"})
"""Never dropped: the body goes on as it came."""


class HttpConnect(HttpReader):
    """Read a request to a proxy; ``wants_password`` refuses clients without credentials."""

    def __init__(self, *, wants_password: bool) -> None:
        super().__init__()
        self._wants_password = wants_password
        self._asked: Asked | None = None

    def _read(self, head: h11.Request) -> Step:
        credentials = _credentials(header(head, b"proxy-authorization"))
        user = credentials.user if self._wants_password else None
        if head.method == b"CONNECT":
            self._asked = Asked(_tunnel(head, user), self._rest)
        else:
            self._asked = _forwarded(head, user, self._rest)
        return credentials if self._wants_password else self._asked

    def authenticated(self) -> Step:
        """Return the request."""
        return self._asked

    def accepted(self, address: Any) -> bytes:  # noqa: ARG002 - HTTP has no place for it
        """Return the response to CONNECT; the other requests have the target's."""
        return b"HTTP/1.1 200 Connection established\r\n\r\n" if self._method == b"CONNECT" else b""


def _tunnel(head: h11.Request, user: str | None) -> Request:
    """Return what CONNECT asks for."""
    name, port = split_authority(head.target.decode("ascii"))
    if port is None:
        raise RequestError("CONNECT needs HOST:PORT")
    # Windows' own clients say a length of 0.
    if header(head, b"content-length").strip("0") or header(head, b"transfer-encoding"):
        raise RequestError("CONNECT has no body")
    return Request(name, port, user)


def _forwarded(head: h11.Request, user: str | None, rest: bytes) -> Asked:
    """Return a request in absolute form as the target is sent it."""
    target = head.target.decode("ascii")
    scheme, separator, after = target.partition("://")
    if scheme.lower() != "http" or not separator:
        raise RequestError("the request's target must be HOST:PORT after CONNECT, or http://...")
    authority = re.split("[/?#]", after, maxsplit=1)[0]
    name, port = split_authority(authority)
    path = after[len(authority) :]
    path = path if path.startswith("/") else f"/{path}"
    first = b"%s %s HTTP/%s" % (head.method, path.encode(), head.http_version)
    named = header(head, b"connection").lower().encode("latin-1").split(b",")
    dropped = _HOP_BY_HOP | {word.strip() for word in named} - _FRAMING
    kept = [b"%s: %s" % pair for pair in head.headers.raw_items() if pair[0].lower() not in dropped]
    lines = [first, b"Host: " + authority.encode(), *kept, b"Connection: close", b"", rest]
    return Asked(Request(name, port or 80, user), b"\r\n".join(lines))


def _credentials(value: str) -> Credentials:
    """Return the user and the password of Basic (RFC 7617); empty for another scheme or none."""
    scheme, _, encoded = value.partition(" ")
    if scheme.lower() != "basic":
        return Credentials("", "")
    try:
        user, _, password = base64.b64decode(encoded.strip(), validate=True).decode().partition(":")
    except ValueError:  # not of base64, or not of UTF-8
        return Credentials("", "")
    return Credentials(user, password)
