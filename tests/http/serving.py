"""A server with chosen answers, and raw clients of it."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import structlog
import trio

from tests.sockets import connected, read_to_end
from vsockproxy.http.message import HttpError, Request, Response, text
from vsockproxy.http.router import Route, Router
from vsockproxy.http.server import HttpServer
from vsockproxy.log.output import Throttle

HOST = b"Host: x\r\n"
GET = b"GET / HTTP/1.1\r\n" + HOST + b"\r\n"


async def hello(request: Request) -> Response:
    """Return the body and the query of a request."""
    return text(f"hello {request.body.decode()} {dict(request.query)}")


def refuse(_request: Request | None, error: HttpError) -> Response:
    """Return the sentence of an error."""
    return Response(error.sentence.encode(), error.status, headers=error.headers)


def server(
    routes: Sequence[Route] = (Route("/", hello), Route("/", hello, "POST")), **bounds: Any
) -> HttpServer:
    """Return a server of routes."""
    log = Throttle(structlog.get_logger())
    return HttpServer("test", Router(routes, refuse, log), log, **bounds)


@asynccontextmanager
async def serving(sock: socket.socket, http: HttpServer) -> AsyncIterator[None]:
    """Serve at a listening socket."""
    async with trio.open_nursery() as nursery:
        await nursery.start(http.serve, [sock])
        yield
        nursery.cancel_scope.cancel()


async def answer_to(sock: socket.socket, *pieces: bytes) -> bytes:
    """Return all that the server sends to a client that sends these pieces."""
    async with await connected(sock) as client:
        for piece in pieces:
            await client.send_all(piece)
        return await read_to_end(client)
