"""The daemon's HTTP side: ``GET /metrics``, ``/healthz``, ``/readyz``, and a page that says so.

Owns: what is served over HTTP, and how a client that is slow or silent is got rid of.
Takes listening sockets, a registry and who knows what is not ready; opens, counts and
judges nothing itself.  hypercorn and starlette are imported when a server starts: a daemon
without one does not pay for them.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import trio

from vsockproxy.log import get_logger

if TYPE_CHECKING:
    from hypercorn.config import Config
    from prometheus_client import CollectorRegistry
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp, Receive, Scope, Send

LIFETIME: Final = 20.0
"""Seconds for one connection: its request, and taking the answer; scrapes give up after 10."""

_INDEX: Final = """\
vsockproxy

GET /metrics   connections, bytes and failures of every route
GET /readyz    200 when every route listens; else 503, and which does not
GET /healthz   200 while the daemon answers at all
"""
_NOT_FOUND: Final = "There is nothing at {path}. Try /metrics\n"

Readiness = Callable[[], list[str]]
"""What is not ready, a sentence each; nothing when all is."""

_Serve = Callable[[trio.SocketStream], Awaitable[None]]


def _always_ready() -> list[str]:
    return []


async def serve_metrics(
    sockets: Sequence[socket.socket],
    registry: CollectorRegistry,
    *,
    readiness: Readiness = _always_ready,
    lifetime: float = LIFETIME,
    task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve HTTP on sockets that listen already; runs until cancelled.

    The sockets stay the caller's.  ``readiness`` is called at each ``/readyz``.
    ``task_status`` is started when requests are answered.
    """
    handler = partial(_serve_client, _http_server(_application(registry, readiness)), lifetime)
    # trio closes the listeners it serves, so each is a duplicate.
    listeners = [
        trio.SocketListener(trio.socket.from_stdlib_socket(sock.dup())) for sock in sockets
    ]
    await trio.serve_listeners(handler, listeners, task_status=task_status)


async def _serve_client(serve: _Serve, lifetime: float, stream: trio.SocketStream) -> None:
    """Serve one connection, which ends at once when cancelled and after ``lifetime`` seconds.

    hypercorn sends shielded from cancellation, and without a bound: a client that does not
    take its answer would hold up the daemon's end.  A closed socket it does understand.
    """
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_close_in_the_end, stream, lifetime)
        try:
            await serve(stream)
        except* Exception as errors:  # noqa: BLE001 - a client's malformed h2c upgrade gets here
            _log_failure(errors)
        nursery.cancel_scope.cancel()


def _log_failure(error: BaseException) -> None:
    """Log what hypercorn let escape: a request that it cannot read must not end the daemon."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    get_logger().warning("http_failed", error=repr(error))


async def _close_in_the_end(stream: trio.SocketStream, lifetime: float) -> None:
    try:
        await trio.sleep(lifetime)
    finally:
        stream.socket.close()


def _http_server(application: ASGIApp) -> _Serve:
    """What speaks HTTP on one accepted stream.

    Below `hypercorn.trio.serve`, which owns its connections and lets nobody end them.
    """
    # Imported here: see the module's docstring.
    from hypercorn.app_wrappers import ASGIWrapper  # noqa: PLC0415 - see above
    from hypercorn.trio.tcp_server import TCPServer  # noqa: PLC0415 - see above
    from hypercorn.trio.worker_context import WorkerContext  # noqa: PLC0415 - see above
    from hypercorn.typing import ConnectionState  # noqa: PLC0415 - see above

    untyped: Any = application  # hypercorn and starlette each have types for ASGI
    wrapped = ASGIWrapper(untyped)

    async def serve(stream: Any) -> None:  # a plain stream, where hypercorn says TLS
        state = ConnectionState({})
        await TCPServer(wrapped, config, context, state, stream).run()

    config = _config()
    context = WorkerContext(max_requests=None)
    return serve


def _config() -> Config:
    import hypercorn.config  # noqa: PLC0415 - see the module's docstring

    config = hypercorn.config.Config()
    config.accesslog = None
    config.errorlog = logging.getLogger("hypercorn.error")
    config.include_server_header = False
    config.keep_alive_max_requests = 0  # one request a connection, so that LIFETIME bounds it
    return config


def _application(registry: CollectorRegistry, readiness: Readiness) -> ASGIApp:
    from prometheus_client import make_asgi_app  # noqa: PLC0415 - see the module's docstring
    from starlette.applications import Starlette  # noqa: PLC0415 - see the module's docstring
    from starlette.routing import Route  # noqa: PLC0415 - see the module's docstring

    async def ready(_request: Request) -> Response:
        lacking = readiness()
        return _text("".join(f"{line}\n" for line in lacking or ["ready"]), 503 if lacking else 200)

    return Starlette(
        routes=[
            Route("/", _index),
            Route("/healthz", _healthy),
            Route("/readyz", ready),
            Route("/metrics", _Scrape(make_asgi_app(registry)), methods=["GET"]),
        ],
        exception_handlers={404: _not_found},
    )


class _Scrape:
    """An ASGI application in the shape that starlette takes for one: not a function."""

    def __init__(self, application: ASGIApp) -> None:
        self._application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._application(scope, receive, send)


async def _healthy(_request: Request) -> Response:
    return _text("ok\n")


async def _index(_request: Request) -> Response:
    return _text(_INDEX)


async def _not_found(request: Request, _error: Exception) -> Response:
    return _text(_NOT_FOUND.format(path=request.url.path), status=404)


def _text(text: str, status: int = 200) -> Response:
    from starlette.responses import PlainTextResponse  # noqa: PLC0415 - see above

    return PlainTextResponse(text, status_code=status)
