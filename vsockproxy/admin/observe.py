"""What anybody may read: ``GET /metrics``, ``/healthz``, ``/readyz``, and a page that says so.

Owns: these answers.  Counts and judges nothing itself, and nothing here changes anything:
it is served over TCP too.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import trio

from vsockproxy.admin.server import LIFETIME, serve_http

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route
    from starlette.types import ASGIApp, Receive, Scope, Send

_INDEX: Final = """\
vsockproxy

GET /metrics   connections, bytes and failures of every route
GET /readyz    200 when every route listens; else 503, and which does not
GET /healthz   200 while the daemon answers at all
"""
_NOT_FOUND: Final = "There is nothing at {path}. Try /metrics\n"

Readiness = Callable[[], list[str]]
"""What is not ready, a sentence each; nothing when all is."""


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
    """Serve what anybody may read on sockets that listen already; runs until cancelled.

    As `serve_http`.  ``readiness`` is called at each ``/readyz``.
    """
    application = _application(registry, readiness)
    await serve_http(sockets, application, lifetime=lifetime, task_status=task_status)


def _application(registry: CollectorRegistry, readiness: Readiness) -> ASGIApp:
    from starlette.applications import Starlette  # noqa: PLC0415 - see the package's docstring
    from starlette.routing import Route  # noqa: PLC0415 - see the package's docstring

    return Starlette(
        routes=[Route("/", _index), *read_only_routes(registry, readiness)],
        exception_handlers={404: _not_found},
    )


def read_only_routes(registry: CollectorRegistry, readiness: Readiness) -> list[Route]:
    """What is the same on the metrics listener and on the operator's socket."""
    from prometheus_client import make_asgi_app  # noqa: PLC0415 - see the package's docstring
    from starlette.routing import Route  # noqa: PLC0415 - see the package's docstring

    async def ready(_request: Request) -> Response:
        lacking = readiness()
        return _text("".join(f"{line}\n" for line in lacking or ["ready"]), 503 if lacking else 200)

    return [
        Route("/healthz", _healthy),
        Route("/readyz", ready),
        Route("/metrics", _Scrape(make_asgi_app(registry)), methods=["GET"]),
    ]


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
