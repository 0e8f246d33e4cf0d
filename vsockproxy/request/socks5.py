"""SOCKS version 5: the command CONNECT (RFC 1928), with user and password (RFC 1929).

client: 5 n METHODS                    server: 5 METHOD
client: 1 n USER n PASSWORD            server: 1 STATUS       (method 2 alone)
client: 5 COMMAND 0 TYPE ADDRESS PORT  server: 5 REPLY 0 TYPE ADDRESS PORT, then the stream
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from ipaddress import IPv4Address, ip_address
from typing import Any, Final

from vsockproxy.config.request import Request
from vsockproxy.request.reader import (
    Asked,
    Credentials,
    Reader,
    Refusal,
    RequestError,
    Step,
    check_port,
    clean_name,
)

_NO_AUTHENTICATION: Final = 0
_PASSWORD: Final = 2
_NONE_ACCEPTABLE: Final = 0xFF
_CONNECT: Final = 1
_IPV4: Final = 1
_NAME: Final = 3
_IPV6: Final = 4
_SIZES: Final = {_IPV4: 4, _IPV6: 16}

_FAILED: Final = 1
_BAD_COMMAND: Final = 7
_BAD_TYPE: Final = 8
_REPLIES: Final = {
    "denied": 2,
    "forbidden": 2,
    "unreachable": 3,
    "name": 4,
    "guest": 4,
    "no_transport": 4,
    "not_found": 4,
    "refused": 5,
    "busy": 5,
    "timeout": 6,
    "no_answer": 6,
}


class Socks5(Reader):
    """Read a request for a stream; ``wants_password`` refuses clients without credentials."""

    def __init__(self, *, wants_password: bool) -> None:
        super().__init__()
        self._wants_password = wants_password
        self._user: str | None = None
        self._data = b""
        self._stage: Callable[[], Step | bool] = self._greeting

    def feed(self, data: bytes) -> Step:
        """Take what the client has sent; clients may send all their messages at once."""
        self._data += data
        while (step := self._stage()) is True:
            pass
        return step or None

    def authenticated(self) -> Step:
        """Answer the right credentials, and read on."""
        self.output += b"\1\0"
        return self.feed(b"")

    def accepted(self, address: Any) -> bytes:
        """Return the reply with our own address; one that is not of IP is 0.0.0.0."""
        is_inet = isinstance(address, tuple) and isinstance(address[0], str)
        ip = ip_address(address[0].partition("%")[0]) if is_inet else IPv4Address(0)
        port = address[1] if is_inet else 0
        kind = _IPV4 if ip.version == 4 else _IPV6
        return bytes([5, 0, 0, kind]) + ip.packed + port.to_bytes(2, "big")

    def refused(self, refusal: Refusal) -> bytes:
        """Return the code for a reason; wrong credentials have a message of their own."""
        if refusal.reason == "unauthenticated":
            return b"\1\1"
        return _reply(_REPLIES.get(refusal.reason, _FAILED))

    # ---- one stage after the other: True goes on with the next, False waits for more ----

    def _greeting(self) -> bool:
        if self._data[:1] not in (b"", b"\5"):
            raise RequestError(f"SOCKS version {self._data[0]}: only version 5 is served")
        methods = self._counted(1)
        if methods is None:
            return False
        self._drop(2 + len(methods))
        if _PASSWORD in methods and (self._wants_password or _NO_AUTHENTICATION not in methods):
            self._choose(_PASSWORD, self._password)
        elif _NO_AUTHENTICATION in methods and not self._wants_password:
            self._choose(_NO_AUTHENTICATION, self._request)
        else:
            self.output += bytes([5, _NONE_ACCEPTABLE])
            raise RequestError("the client offers no method of authentication that is accepted")
        return True

    def _choose(self, method: int, stage: Callable[[], Step | bool]) -> None:
        self.output += bytes([5, method])
        self._stage = stage

    def _password(self) -> Step | bool:
        if self._data[:1] not in (b"", b"\1"):
            raise RequestError("the client's credentials are not of RFC 1929")
        user = self._counted(1)
        password = None if user is None else self._counted(2 + len(user))
        if user is None or password is None:
            return False
        self._drop(3 + len(user) + len(password))
        self._stage = self._request
        if self._wants_password:
            self._user = user.decode(errors="replace")
            return Credentials(self._user, password.decode(errors="replace"))
        self.output += b"\1\0"
        return True

    def _request(self) -> Step | bool:
        if self._data[:1] not in (b"", b"\5"):
            raise RequestError("the request is not of SOCKS version 5")
        if len(self._data) < 5:
            return False
        command, kind = self._data[1], self._data[3]
        size = 1 + self._data[4] if kind == _NAME else _SIZES.get(kind)
        if command != _CONNECT or size is None:
            self.output += _reply(_BAD_TYPE if size is None else _BAD_COMMAND)
            what = f"address type {kind}" if size is None else f"command {command}"
            raise RequestError(f"SOCKS {what}: only CONNECT to a name or an address is served")
        if len(self._data) < 6 + size:
            return False
        address, port = self._data[4 : 4 + size], self._data[4 + size : 6 + size]
        self._drop(6 + size)
        try:
            name, number = _host(kind, address), check_port(int.from_bytes(port, "big"))
        except RequestError:
            self.output += _reply(_FAILED)
            raise
        return Asked(Request(name, number, self._user), self._data)

    def _counted(self, at: int) -> bytes | None:
        """Return the bytes behind the count at an index; None while some are missing."""
        if len(self._data) <= at:
            return None
        found = self._data[at + 1 : at + 1 + self._data[at]]
        return found if len(found) == self._data[at] else None

    def _drop(self, size: int) -> None:
        self._data = self._data[size:]


def _host(kind: int, address: bytes) -> str:
    if kind == _NAME:
        return clean_name(address[1:].decode("ascii", errors="replace"))
    # inet_ntop(3) and not ipaddress, whose text for ::ffff:127.0.0.1 is another one from 3.13 on.
    return socket.inet_ntop(socket.AF_INET if kind == _IPV4 else socket.AF_INET6, address)


def _reply(code: int) -> bytes:
    return bytes([5, code, 0, _IPV4]) + bytes(6)
