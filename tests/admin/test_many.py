"""Thousands of routes and connections: answers are complete, and made in short turns."""

from __future__ import annotations

import gc
import json
import socket
from collections.abc import Iterable
from typing import cast

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder

from tests.admin.fake_daemon import FakeDaemon
from tests.http.serving import answer_to, serving
from tests.rounds import in_one_of_three, short_rounds
from vsockproxy import metrics
from vsockproxy.address.endpoint import TcpEndpoint
from vsockproxy.admin.control import control_server
from vsockproxy.admin.daemon_interface import Daemon
from vsockproxy.admin.metrics_text import scrape
from vsockproxy.admin.probes import read_only_routes
from vsockproxy.config.settings import Route
from vsockproxy.connection import Connection
from vsockproxy.metrics import MetricsCollector
from vsockproxy.stats import RouteStats, TargetState

AF_INET = 2
OPENMETRICS = "application/openmetrics-text; version=1.0.0"
ROUTES = 5000
CONNECTIONS = 10_000


def routes(number: int) -> list[RouteStats]:
    """Return routes with a connection closed and a target each."""
    found = []
    for port in range(1, number + 1):
        route = Route(f"r{port}", TcpEndpoint(None, port), TcpEndpoint("host", port))
        stats = RouteStats(route)
        stats.closed["finished"] = port
        stats.targets = [TargetState(route.targets[0])]
        found.append(stats)
    return found


def connect_many(stats: RouteStats) -> None:
    for number in range(1, CONNECTIONS + 1):
        address = (f"203.0.{number % 100}.1", number)
        stats.open(Connection(number, stats.route, AF_INET, address))


async def answer_of(tcp: socket.socket, daemon: FakeDaemon, target: str, method: str) -> bytes:
    """Return the body of an answer, whose rounds of the loop must be short."""
    registry = CollectorRegistry()
    registry.register(MetricsCollector(daemon))
    http = control_server(cast(Daemon, daemon), read_only_routes(registry, daemon))
    body = b'{"all": true}' if method == "POST" else b""
    head = f"{method} {target} HTTP/1.0\r\nContent-Length: {len(body)}\r\n\r\n"
    async with serving(tcp, http):
        await answer_to(tcp, b"GET /v1/connections?sort=id&limit=1 HTTP/1.0\r\n\r\n")  # rates
        gc.collect()  # what the test has made is not the answer's
        with short_rounds():
            answer = await answer_to(tcp, head.encode() + body)
    assert answer.startswith(b"HTTP/1.1 200 ")
    return answer.partition(b"\r\n\r\n")[2]


# ---- metrics ----


def text_at_once(
    daemon: FakeDaemon, accept: str, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...] = ()
) -> bytes:
    """Return what the Prometheus library makes of metrics that are not in parts."""
    monkeypatch.setattr(metrics, "_PART", 10**9)
    registry = CollectorRegistry()
    registry.register(MetricsCollector(daemon))
    encode, _ = choose_encoder(accept)
    text = encode(registry.restricted_registry(names) if names else registry)
    monkeypatch.undo()
    return text


@pytest.mark.parametrize(
    "accept",
    ["", "text/plain; version=1.0.0", OPENMETRICS, f"{OPENMETRICS}; escaping=dots"],
)
@pytest.mark.parametrize("names", [(), ("vsockproxy_connections_total",), ("other",)])
def test_a_metric_in_parts_has_the_text_of_a_whole_one(
    accept: str, names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = FakeDaemon(*routes(250))
    text = scrape(MetricsCollector(daemon).collect(), accept, names)
    assert b"".join(text.pieces) == text_at_once(daemon, accept, monkeypatch, names)


def test_parts_are_small() -> None:
    largest = max(
        len(part.samples) for part in MetricsCollector(FakeDaemon(*routes(250))).collect()
    )
    assert largest < 120


def test_counters_with_a_new_key_between_two_parts_are_read() -> None:
    many = routes(250)
    for stats in many:
        stats.closed.update({f"reason {number}": 1 for number in range(60)})
    parts: list[Metric] = []
    for part in MetricsCollector(FakeDaemon(*many)).collect():
        parts.append(part)
        for stats in many:
            stats.closed[f"another {len(parts)}"] = 1
    assert sum(part.name == "vsockproxy_connections_closed" for part in parts) > 100


@pytest.mark.parametrize("target", ["/metrics", "/metrics?name[]=other"])
@in_one_of_three
async def test_a_scrape_of_many_routes_leaves_rounds_short(tcp: socket.socket, target: str) -> None:
    daemon = FakeDaemon(*routes(ROUTES))
    text = await answer_of(tcp, daemon, target, "GET")
    assert text.count(b"\nvsockproxy_connections_total{") == (ROUTES if "?" not in target else 0)


# ---- the API ----


@pytest.mark.parametrize("target", ["/v1/routes", "/v1/config"])
@in_one_of_three
async def test_a_list_of_many_routes_is_complete_and_leaves_rounds_short(
    tcp: socket.socket, target: str
) -> None:
    listed = json.loads(await answer_of(tcp, FakeDaemon(*routes(ROUTES)), target, "GET"))
    assert [route["name"] for route in listed["routes"]] == [f"r{n}" for n in range(1, ROUTES + 1)]


@pytest.mark.parametrize(
    ("target", "total", "shown"),
    [
        ("/v1/connections?limit=3", CONNECTIONS, [1, 2, 3]),
        ("/v1/connections?limit=2&order=desc", CONNECTIONS, [CONNECTIONS, CONNECTIONS - 1]),
        ("/v1/connections?limit=2&client=203.0.50.0/24", 100, [50, 150]),
        ("/v1/connections?limit=1000&sort=bytes", CONNECTIONS, range(CONNECTIONS, 9000, -1)),
    ],
)
@in_one_of_three
async def test_a_page_of_many_connections_leaves_rounds_short(
    tcp: socket.socket, target: str, total: int, shown: Iterable[int]
) -> None:
    [stats] = routes(1)
    connect_many(stats)
    page = json.loads(await answer_of(tcp, FakeDaemon(stats), target, "GET"))
    assert page["total"] == total
    assert [one["id"] for one in page["connections"]] == list(shown)
    assert page["next"] is not None


@in_one_of_three
async def test_ending_many_connections_leaves_rounds_short(tcp: socket.socket) -> None:
    [stats] = routes(1)
    connect_many(stats)
    ended = json.loads(await answer_of(tcp, FakeDaemon(stats), "/v1/connections/end", "POST"))
    assert ended["ended"] == list(range(1, CONNECTIONS + 1))
    assert {live.ending for live in stats.live} == {"killed"}
