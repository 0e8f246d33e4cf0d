"""The server name in a TLS ClientHello, which OpenSSL reads and nothing terminates."""

from __future__ import annotations

import ssl
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Final

from vsockproxy.config.request import Request
from vsockproxy.request.reader import Asked, Reader, Refusal, RequestError, Step, clean_name

_INTERNAL_ERROR: Final = 80
_MISSING_EXTENSION: Final = 109
_UNRECOGNIZED_NAME: Final = 112
_DENIED: Final = ("denied", "forbidden")


class Sni(Reader):
    """Read a ClientHello; all of it goes to the target."""

    def __init__(self) -> None:
        super().__init__()
        self._data = b""
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = _context().wrap_bio(self._incoming, self._outgoing, server_side=True)

    def feed(self, data: bytes) -> Step:
        """Take what the client has sent."""
        self._data += data
        self._incoming.write(data)
        try:
            with _undecodable_names():
                self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return None
        except ssl.SSLError as error:
            return self._read(error)
        raise AssertionError("a handshake without a certificate has ended")

    def _read(self, error: ssl.SSLError) -> Asked:
        self.output = self._outgoing.read()  # OpenSSL's alert, which `_note` makes too
        if not isinstance(self._tls, _Hello) or not self._tls.is_read:
            raise RequestError(f"no TLS ClientHello: {error.reason}") from error
        if self._tls.name is None:
            self.output = _alert(_MISSING_EXTENSION)
            raise RequestError("the ClientHello has no server name")
        request = Request(clean_name(self._tls.name))
        self.output = b""
        return Asked(request, self._data)

    def refused(self, refusal: Refusal) -> bytes:
        """Return the alert for a reason, which TLS libraries print."""
        return _alert(_UNRECOGNIZED_NAME if refusal.reason in _DENIED else _INTERNAL_ERROR)


def _alert(description: int) -> bytes:
    """Return the record of a fatal alert (RFC 8446, section 6)."""
    return bytes([21, 3, 3, 0, 2, 2, description])


class _Hello(ssl.SSLObject):
    """The server's side of a handshake, up to the ClientHello."""

    is_read = False
    name: str | None = None


def _note(hello: ssl.SSLSocket | ssl.SSLObject, name: str | None, _context: object) -> int:
    """Keep the server name, and end the handshake; OpenSSL calls it."""
    assert isinstance(hello, _Hello)
    hello.is_read, hello.name = True, name
    return ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME


@cache
def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.sslobject_class = _Hello
    # Otherwise OpenSSL rejects old hellos before it reads the name.
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.sni_callback = _note
    return context


@contextmanager
def _undecodable_names() -> Iterator[None]:
    """Keep a name that is not ASCII off standard error, where the ssl module writes it."""
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if not isinstance(unraisable.exc_value, UnicodeDecodeError):
            before(unraisable)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before
