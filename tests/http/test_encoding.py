"""Tests of compressed responses."""

from __future__ import annotations

import gzip
import socket
from collections.abc import AsyncGenerator

import pytest

from tests.http.serving import HOST, answer_to, server, serving
from tests.rounds import in_one_of_three, short_rounds
from vsockproxy.http.encoding import accepts_gzip
from vsockproxy.http.message import Request, Response
from vsockproxy.http.router import Route

LINE = b'metric{route="web"} 1.0\n'
LARGE = LINE * 100_000


@pytest.mark.parametrize(
    ("header", "is_accepted"),
    [
        ("gzip", True),
        ("GZip", True),
        ("x-gzip", True),
        ("deflate, gzip;q=0.5, br", True),
        ("*", True),
        ("gzip;q=0.001", True),
        ("gzip ; q=1.0", True),
        ("identity;q=0.5, gzip;q=0.5", True),
        ("identity, gzip;q=0.9", False),
        ("gzip;q=0", False),
        ("gzip; q=0.000", False),
        ("*;q=0", False),
        ("gzip;q=0, *", False),
        ("gzip;q=x", False),
        ("gzip;q=nan", False),
        ("br", False),
        ("identity", False),
        ("", False),
        (",;q=1,", False),
    ],
)
def test_gzip_is_used_where_the_client_prefers_it(header: str, is_accepted: bool) -> None:
    assert accepts_gzip(header) is is_accepted


async def small(_request: Request) -> Response:
    return Response(LINE)


async def large(_request: Request) -> Response:
    return Response(LARGE)


async def made_while_sent(_request: Request) -> Response:
    async def pieces() -> AsyncGenerator[bytes, None]:
        for _ in range(100):
            yield LINE * 1000

    return Response(pieces())


ROUTES = [Route("/small", small), Route("/large", large), Route("/pieces", made_while_sent)]


async def get(
    tcp: socket.socket, path: str, encoding: str = "gzip", method: str = "GET"
) -> tuple[bytes, bytes]:
    """Return the head and the body of an answer."""
    request = f"{method} {path} HTTP/1.0\r\nAccept-Encoding: {encoding}\r\n".encode()
    async with serving(tcp, server(ROUTES)):
        head, _, body = (await answer_to(tcp, request + HOST + b"\r\n")).partition(b"\r\n\r\n")
    return head.lower(), body


@pytest.mark.parametrize("path", ["/large", "/pieces"])
@in_one_of_three
async def test_a_large_body_is_compressed_in_short_turns(tcp: socket.socket, path: str) -> None:
    with short_rounds():
        head, body = await get(tcp, path)
    assert b"\r\ncontent-encoding: gzip" in head
    assert b"\r\nvary: accept-encoding" in head
    assert len(body) < len(LARGE) / 20
    assert gzip.decompress(body) == LARGE


@pytest.mark.parametrize("path", ["/large", "/pieces"])
async def test_a_client_without_gzip_gets_the_plain_body(tcp: socket.socket, path: str) -> None:
    head, body = await get(tcp, path, "gzip;q=0")
    assert b"content-encoding" not in head
    assert b"\r\nvary: accept-encoding" in head
    assert body == LARGE


async def test_a_small_body_is_not_compressed(tcp: socket.socket) -> None:
    head, body = await get(tcp, "/small")
    assert b"content-encoding" not in head
    assert body == LINE


async def test_head_has_the_encoding_of_get(tcp: socket.socket) -> None:
    head, body = await get(tcp, "/large", method="HEAD")
    assert b"\r\ncontent-encoding: gzip" in head
    assert body == b""
