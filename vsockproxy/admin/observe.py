"""What anybody may read: ``GET /metrics``, ``/healthz``, ``/readyz``, and a page that says so.

Owns: these answers.  Counts and judges nothing itself, and nothing here changes anything:
it is served over TCP too.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Protocol

import trio

from vsockproxy.admin.server import LIFETIME, Tls, serve_http, without_tls

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route
    from starlette.types import ASGIApp

_INDEX: Final = """\
vsockproxy

GET /metrics              connections, bytes and failures of every route
GET /readyz               200 when every route listens; else 503, and what is missing
GET /readyz?target=ROUTE  the same, and whether the target of that route can be dialled
GET /healthz              200 while the event loop and the threads that move bytes go on
"""
_NOT_FOUND: Final = "There is nothing at {path}. Try /metrics\n"
_HUNG: Final = "a thread that moves bytes does not answer\n"
_ANSWERS_WITHIN: Final = 2.0  # seconds; a thread that is well takes milliseconds
_MOST_DIALS: Final = 16  # of one request


class Observed(Protocol):
    """What is asked of the daemon."""

    def not_ready(self) -> list[str]:
        """What is not ready, a sentence each; nothing when all is."""
        ...

    async def alive(self) -> None:
        """Return once everything that moves bytes has shown that it goes on."""
        ...

    async def reach(self, name: str) -> str | None:
        """Why the target of a route cannot be dialled, if it cannot."""
        ...


async def serve_metrics(
    sockets: Sequence[socket.socket],
    registry: CollectorRegistry,
    observed: Observed,
    *,
    tls: Tls = without_tls,
    lifetime: float = LIFETIME,
    task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve what anybody may read on sockets that listen already; runs until cancelled.

    As `serve_http`.
    """
    application = _application(registry, observed)
    await serve_http(sockets, application, tls=tls, lifetime=lifetime, task_status=task_status)


def _application(registry: CollectorRegistry, observed: Observed) -> ASGIApp:
    from starlette.applications import Starlette  # noqa: PLC0415 - see the package's docstring
    from starlette.routing import Route  # noqa: PLC0415 - see the package's docstring

    return Starlette(
        routes=[Route("/", _index), *read_only_routes(registry, observed)],
        exception_handlers={404: _not_found},
    )


def read_only_routes(registry: CollectorRegistry, observed: Observed) -> list[Route]:
    """What is the same on the metrics listener and on the operator's socket."""
    from starlette.routing import Route  # noqa: PLC0415 - see the package's docstring

    return [
        Route("/healthz", partial(_healthy, observed)),
        Route("/readyz", partial(_ready, observed)),
        Route("/metrics", partial(_metrics, registry)),
    ]


async def _metrics(registry: CollectorRegistry, request: Request) -> Response:
    """The text of a scrape: the numbers are taken here, and spelt in a thread."""
    from starlette.responses import Response  # noqa: PLC0415 - see the package's docstring

    names = request.query_params.getlist("name[]")
    source = registry.restricted_registry(names) if names else registry
    taken = _Taken(list(source.collect()))
    text, kind = await trio.to_thread.run_sync(_spell, taken, request.headers.get("accept", ""))
    return Response(text, media_type=kind)


class _Taken:
    """Metrics that were collected already, as a registry has them."""

    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> list[Metric]:
        return self._metrics


def _spell(taken: _Taken, accept: str) -> tuple[bytes, str]:
    from prometheus_client.exposition import choose_encoder  # noqa: PLC0415 - see above

    encode, kind = choose_encoder(accept)
    registry: Any = taken  # it has what an encoder asks a registry for
    return encode(registry), kind


async def _healthy(observed: Observed, _request: Request) -> Response:
    with trio.move_on_after(_ANSWERS_WITHIN) as patience:
        await observed.alive()
    return _text(_HUNG, 503) if patience.cancelled_caught else _text("ok\n")


async def _ready(observed: Observed, request: Request) -> Response:
    not_ready = observed.not_ready()
    names = dict.fromkeys(request.query_params.getlist("target"))
    for name in islice(names, _MOST_DIALS):
        error = await observed.reach(name)
        if error is not None:
            not_ready.append(f"route {name}: {error}")
    return _text("".join(f"{line}\n" for line in not_ready or ["ready"]), 503 if not_ready else 200)


async def _index(_request: Request) -> Response:
    return _text(_INDEX)


async def _not_found(request: Request, _error: Exception) -> Response:
    return _text(_NOT_FOUND.format(path=request.url.path), status=404)


def _text(text: str, status: int = 200) -> Response:
    from starlette.responses import PlainTextResponse  # noqa: PLC0415 - see above

    return PlainTextResponse(text, status_code=status)
