"""The read-only paths: ``GET /metrics``, ``/healthz`` and ``/readyz``, and an index of them.

Owns: these answers.  Nothing here changes the daemon: it is served over TCP too.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from functools import partial
from itertools import islice
from typing import Any, Final

import trio
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from vsockproxy.admin.daemon import Health
from vsockproxy.admin.server import LIFETIME, Tls, serve_http, without_tls

_INDEX: Final = """\
vsockproxy

GET /metrics              metrics of every route, for Prometheus
GET /readyz               200 if every route listens; else 503 and what is missing
GET /readyz?target=ROUTE  the same, and whether the target of that route can be dialled
GET /healthz              200 if the event loop and the pump's threads answer
"""
_NOT_FOUND: Final = "not found: {path}; GET / lists the paths\n"
_HUNG: Final = "a thread of the pump does not answer\n"
_HEALTH_TIMEOUT: Final = 2.0  # seconds; a healthy thread takes milliseconds
_MAX_DIALS: Final = 16  # per request


async def serve_metrics(
    sockets: Sequence[socket.socket],
    registry: CollectorRegistry,
    health: Health,
    *,
    tls: Tls = without_tls,
    lifetime: float = LIFETIME,
    task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve the read-only paths on listening sockets until cancelled, as `serve_http` does."""
    application = _application(registry, health)
    await serve_http(sockets, application, tls=tls, lifetime=lifetime, task_status=task_status)


def _application(registry: CollectorRegistry, health: Health) -> ASGIApp:
    return Starlette(
        routes=[Route("/", _index), *read_only_routes(registry, health)],
        exception_handlers={404: _not_found},
    )


def read_only_routes(registry: CollectorRegistry, health: Health) -> list[Route]:
    """Return the paths that the metrics listener and the control socket have in common."""
    return [
        Route("/healthz", partial(_healthz, health)),
        Route("/readyz", partial(_readyz, health)),
        Route("/metrics", partial(_metrics, registry)),
    ]


async def _metrics(registry: CollectorRegistry, request: Request) -> Response:
    """Answer a scrape: collect in the event loop, and format in a thread."""
    names = request.query_params.getlist("name[]")
    source = registry.restricted_registry(names) if names else registry
    collected = _Collected(list(source.collect()))
    accept = request.headers.get("accept", "")
    text, media_type = await trio.to_thread.run_sync(_formatted, collected, accept)
    return Response(text, media_type=media_type)


class _Collected:
    """Collected metrics, with the one method of a registry that an encoder calls."""

    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> list[Metric]:
        return self._metrics


def _formatted(collected: _Collected, accept: str) -> tuple[bytes, str]:
    encode, media_type = choose_encoder(accept)
    registry: Any = collected
    return encode(registry), media_type


async def _healthz(health: Health, _request: Request) -> Response:
    with trio.move_on_after(_HEALTH_TIMEOUT) as timeout:
        await health.alive()
    return _text(_HUNG, 503) if timeout.cancelled_caught else _text("ok\n")


async def _readyz(health: Health, request: Request) -> Response:
    problems = health.not_ready()
    names = dict.fromkeys(request.query_params.getlist("target"))
    for name in islice(names, _MAX_DIALS):
        error = await health.reach(name)
        if error is not None:
            problems.append(f"route {name}: {error}")
    return _text("".join(f"{line}\n" for line in problems or ["ready"]), 503 if problems else 200)


async def _index(_request: Request) -> Response:
    return _text(_INDEX)


async def _not_found(request: Request, _error: Exception) -> Response:
    return _text(_NOT_FOUND.format(path=request.url.path), status=404)


def _text(text: str, status: int = 200) -> Response:
    return PlainTextResponse(text, status_code=status)
