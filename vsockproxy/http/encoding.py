"""gzip for the clients that accept it, in the pieces that are sent.

Owns: which responses are compressed.
"""

from __future__ import annotations

import zlib
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Final

from vsockproxy.http.loop_share import turn
from vsockproxy.http.message import Body, Response

_GZIP_FORMAT: Final = 31  # zlib's wbits: the largest window, and gzip's header
_LEVEL: Final = 1  # metrics shrink to a twentieth at the lowest cost
_WORTH_IT: Final = 1024  # bytes; a smaller body is one packet anyway
_PIECE: Final = 65536  # bytes compressed, encrypted and sent at once


def encoded(response: Response, accept_encoding: str) -> Response:
    """Return a response under gzip if it is large, and its client prefers that."""
    body = response.body
    if isinstance(body, bytes) and len(body) < _WORTH_IT:
        return response
    headers = (*response.headers, ("vary", "accept-encoding"))
    if not accepts_gzip(accept_encoding):
        return replace(response, headers=headers)
    headers = (*headers, ("content-encoding", "gzip"))
    return replace(response, body=_gzipped(pieces_of(body)), headers=headers)


def accepts_gzip(accept_encoding: str) -> bool:
    """Return whether a client prefers gzip to the plain text (RFC 9110, section 12.5.3)."""
    weights = dict(map(_weight, accept_encoding.lower().split(",")))
    gzip = weights.get("gzip", weights.get("x-gzip", weights.get("*", 0.0)))
    return gzip > 0 and gzip >= weights.get("identity", 0.0)


def _weight(item: str) -> tuple[str, float]:
    coding, _, parameters = item.partition(";")
    for parameter in parameters.split(";"):
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                return coding.strip(), float(value)
            except ValueError:
                return coding.strip(), 0.0
    return coding.strip(), 1.0


async def pieces_of(body: Body) -> AsyncGenerator[bytes, None]:
    """Yield a body in pieces."""
    if isinstance(body, bytes):
        for start in range(0, len(body), _PIECE):
            yield body[start : start + _PIECE]
    else:
        async with aclosing(body):
            async for piece in body:
                yield piece


async def _gzipped(pieces: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """Yield a stream under gzip; a turn compresses one piece, so none may be large."""
    compressor = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP_FORMAT)
    async with aclosing(pieces):
        async for piece in pieces:
            async with turn():
                compressed = compressor.compress(piece)
            if compressed:
                yield compressed
    yield compressor.flush()
