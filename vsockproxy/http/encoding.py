"""gzip for the clients that accept it, in the pieces that are sent."""

from __future__ import annotations

import zlib
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

from vsockproxy.http.turn import turn

_GZIP_FORMAT: Final = 31  # zlib's wbits: the largest window, and gzip's header
_LEVEL: Final = 1  # metrics shrink to a twentieth at the lowest cost


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


async def gzipped(pieces: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """Yield a stream under gzip; a turn compresses one piece, so none may be large."""
    compressor = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP_FORMAT)
    async with aclosing(pieces):
        async for piece in pieces:
            async with turn():
                compressed = compressor.compress(piece)
            if compressed:
                yield compressed
    yield compressor.flush()
