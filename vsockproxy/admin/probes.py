"""The read-only paths: ``GET /metrics``, ``/healthz`` and ``/readyz``, and a list of them.

Owns: these answers.  Nothing here changes the daemon: it is served over TCP too.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Final

import trio
from prometheus_client import CollectorRegistry

from vsockproxy.admin.daemon_interface import Health
from vsockproxy.admin.metrics_text import scrape
from vsockproxy.admin.registry import Registry
from vsockproxy.http.loop_share import body_of
from vsockproxy.http.message import HttpError, Request, Response, text
from vsockproxy.http.router import Answer, Route, Router
from vsockproxy.http.server import LIFETIME, HttpServer, Tls, without_tls
from vsockproxy.log.output import Throttle, get_logger

_INDEX: Final = """\
vsockproxy

GET /                     the status page, for people: {page}
GET /metrics              metrics of every route, for Prometheus
GET /readyz               200 if no route fails; else 503 and what is missing. A route that an
                          operator has paused or drained is named, and leaves the daemon ready
GET /readyz?route=ROUTE   the same, and whether that route accepts clients
GET /readyz?target=ROUTE  the same, and whether the target of that route can be dialled
GET /healthz              200 if the event loop and the pump's threads answer
"""
_HUNG: Final = "a thread of the pump does not answer\n"
_HEALTH_TIMEOUT: Final = 2.0  # seconds; a healthy thread takes milliseconds
_MAX_DIALS: Final = 16  # per request


def metrics_server(
    registry: CollectorRegistry,
    health: Health,
    page: Answer,
    *,
    tls: Tls = without_tls,
    lifetime: float = LIFETIME,
) -> HttpServer:
    """Return the server of the read-only paths, with ``page`` at ``/``."""
    log = Throttle(get_logger())
    routes = [Route("/", page), *read_only_routes(registry, health)]
    return HttpServer("metrics", Router(routes, _refusal, log), log, tls=tls, lifetime=lifetime)


def read_only_routes(registry: CollectorRegistry, health: Health) -> list[Route]:
    """Return the paths that the metrics listener and the control socket have in common."""
    return [
        Route("/healthz", partial(_healthz, health)),
        Route("/readyz", partial(_readyz, health)),
        Route("/metrics", partial(_metrics, registry, health)),
    ]


async def up_to_date(health: Health) -> None:
    """Return once the counters have all that the pump's threads know, or one does not answer."""
    with trio.move_on_after(_HEALTH_TIMEOUT):
        await health.alive()


async def _metrics(registry: CollectorRegistry, health: Health, request: Request) -> Response:
    """Answer a scrape, whose text is made in turns."""
    await up_to_date(health)
    if isinstance(registry, Registry):
        await registry.read_process()
    names = request.query.get("name[]", [])
    text = scrape(registry.collect(), request.headers.get("accept", ""), frozenset(names))
    return Response(await body_of(text.pieces), media_type=text.media_type)


async def _healthz(health: Health, _request: Request) -> Response:
    with trio.move_on_after(_HEALTH_TIMEOUT) as timeout:
        await health.alive()
    return text(_HUNG, 503) if timeout.cancelled_caught else text("ok\n")


async def _readyz(health: Health, request: Request) -> Response:
    query = {key: dict.fromkeys(names) for key, names in request.query.items()}
    if unknown := query.keys() - {"route", "target"}:
        sentence = f"unknown parameter {min(unknown)!r}: expected route or target"
        raise HttpError(400, sentence)
    problems = health.not_ready()
    for name in query.get("route", ()):
        problems += _of_route(name, health.accepts(name))
    for name in islice(query.get("target", ()), _MAX_DIALS):
        problems += _of_route(name, await health.reach(name))
    lines = problems or ["ready", *health.closed_routes()]
    return text("".join(f"{line}\n" for line in lines), 503 if problems else 200)


def _of_route(name: str, problem: str | None) -> list[str]:
    return [] if problem is None else [f"route {name}: {problem}"]


def index(page: str) -> Response:
    """Return the list of the paths, with a sentence about the status page."""
    return text(_INDEX.format(page=page))


def _refusal(request: Request | None, error: HttpError) -> Response:
    sentence = error.sentence
    if request is not None and error.status == 404:
        sentence = f"not found: {request.path}; GET / lists the paths"
    refusal = text(f"{sentence}\n", error.status)
    return replace(refusal, headers=error.headers)
