"""What the readers of requests have in common: their steps, their bounds and the grammar of a name.

A reader is without I/O: `feed` it what the client sends, send the client its `output`, and go on
with the step that it returns.  What was read behind a request belongs to the target.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from ipaddress import AddressValueError, IPv6Address
from typing import Any, Final, NamedTuple

from vsockproxy.config.request import Request
from vsockproxy.errors import VsockproxyError

MOST: Final = 5 + 16384
"""The most bytes of a request: a TLS record's header and the longest record.

Of a ClientHello nginx and HAProxy take as much; browsers send 2 KiB. Heads of HTTP have 8 KiB on
most servers.
"""

_NAME: Final = re.compile(r"(?!.{254})[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*")
_AUTHORITY: Final = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:\[\]@/?#]+))(?::([0-9]{0,5}))?")
_PORT_MAX: Final = 0xFFFF


class RequestError(VsockproxyError):
    """The client sent no valid request; `Reader.output` may have an answer to it."""


class Asked(NamedTuple):
    """A complete request, and the bytes that the target is sent before all others."""

    request: Request
    replay: bytes


class Credentials(NamedTuple):
    """A client's user and password: if they are right, the reader goes on with `authenticated`."""

    user: str
    password: str


Step = Asked | Credentials | None
"""What comes next: a request, credentials to check, or more bytes."""


class Refusal(NamedTuple):
    """Why a request is not served.

    Attributes:
      reason: ``denied``, ``unauthenticated``, or a `reasons.Reason` of a failed dial.
      sentence: for the client, which must not learn the host's paths and addresses from it.
    """

    reason: str
    sentence: str


class Reader(ABC):
    """Reads one client's request.

    Attributes:
      output: bytes to send to the client; the sender empties it.
    """

    def __init__(self) -> None:
        self.output = b""

    @abstractmethod
    def feed(self, data: bytes) -> Step:
        """Take what the client has sent.  Raises `RequestError`."""

    def authenticated(self) -> Step:
        """Go on after credentials that are right.  Raises `RequestError`."""
        raise AssertionError("this reader takes no credentials")

    def accepted(self, address: Any) -> bytes:  # noqa: ARG002 - for readers that have an answer
        """Return the answer once the target is connected.

        ``address`` is our own end of that connection, as the socket module has it.
        """
        return b""

    def refused(self, refusal: Refusal) -> bytes:  # noqa: ARG002 - as above
        """Return the answer to a request that is not served; empty where closing says all."""
        return b""


def clean_name(text: str) -> str:
    """Return a host's name or IP address in lower case, without a trailing dot.

    Raises `RequestError`.
    """
    name = text.lower().removesuffix(".")
    if not _NAME.fullmatch(name) and not _is_ipv6(name):
        raise RequestError(f"{text[:64]!r} is not a host name")
    return name


def split_authority(text: str) -> tuple[str, int | None]:
    """Return the name and the port in ``HOST:PORT`` or ``HOST`` (RFC 3986, section 3.2).

    Raises `RequestError`.
    """
    match = _AUTHORITY.fullmatch(text)
    if match is None or (match[1] and not _is_ipv6(match[1])):
        raise RequestError(f"{text[:64]!r} is not HOST:PORT")
    return clean_name(match[1] or match[2]), check_port(int(match[3])) if match[3] else None


def check_port(port: int) -> int:
    """Return a TCP port; raise `RequestError` for a number that is none."""
    if not 0 < port <= _PORT_MAX:
        raise RequestError(f"{port} is not a port")
    return port


def _is_ipv6(text: str) -> bool:
    try:
        return "%" not in text and bool(IPv6Address(text).packed)
    except AddressValueError:
        return False
