"""Feed readers: in one piece, in given pieces, byte by byte."""

from __future__ import annotations

import ssl
import warnings
from collections.abc import Callable, Iterable
from typing import NamedTuple

from vsockproxy.request.http_connect import HttpConnect
from vsockproxy.request.http_host import HttpHost
from vsockproxy.request.mux import Mux
from vsockproxy.request.reader import Asked, Credentials, Reader, RequestError
from vsockproxy.request.sni import Sni
from vsockproxy.request.socks5 import Socks5

READERS: dict[str, Callable[[], Reader]] = {
    "socks5": lambda: Socks5(wants_password=False),
    "socks5 with password": lambda: Socks5(wants_password=True),
    "http-connect": lambda: HttpConnect(wants_password=False),
    "http-connect with password": lambda: HttpConnect(wants_password=True),
    "sni": Sni,
    "http-host": HttpHost,
    "mux": lambda: Mux(None),
    "mux of one guest": lambda: Mux("web"),
}


class Read(NamedTuple):
    """What a reader made of its bytes."""

    asked: Asked | None
    credentials: Credentials | None
    output: bytes
    error: str | None


def read(reader: Reader, pieces: Iterable[bytes]) -> Read:
    """Feed pieces until a request is complete; the rest of them is replayed. Accept credentials."""
    credentials: Credentials | None = None
    rest = iter(pieces)
    try:
        for piece in rest:
            step = reader.feed(piece)
            if isinstance(step, Credentials):
                credentials = step
                step = reader.authenticated()
            assert not isinstance(step, Credentials)
            if step is not None:
                asked = Asked(step.request, step.replay + b"".join(rest))
                return Read(asked, credentials, reader.output, None)
    except RequestError as error:
        return Read(None, credentials, reader.output, str(error))
    return Read(None, credentials, reader.output, None)


def client_hello(
    name: str | None, *, ciphers: str = "DEFAULT", version: ssl.TLSVersion | None = None
) -> bytes:
    """Return the ClientHello of OpenSSL; ``version`` is the highest that it offers."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.set_ciphers(ciphers)
    if version is not None:
        context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # TLS 1.0
            context.maximum_version = version
    sent = ssl.MemoryBIO()
    tls = context.wrap_bio(ssl.MemoryBIO(), sent, server_hostname=name)
    try:
        tls.do_handshake()
    except ssl.SSLWantReadError:
        return sent.read()
    raise AssertionError("a handshake without a server has ended")
