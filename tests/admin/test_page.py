"""Tests of the status page: what it shows, to whom, escaped, and bounded."""

from __future__ import annotations

import gc
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest
from prometheus_client import CollectorRegistry

from tests.admin.conftest import url
from tests.admin.fake_daemon import FakeDaemon
from tests.admin.test_many import connect_many, routes
from tests.http.serving import answer_to, serving
from tests.rounds import in_one_of_three, short_rounds
from vsockproxy.address.endpoint import TcpEndpoint, UnixEndpoint
from vsockproxy.admin.daemon_interface import Daemon
from vsockproxy.admin.page import StatusPage
from vsockproxy.admin.probes import metrics_server
from vsockproxy.config.settings import Policy, Route
from vsockproxy.connection import Connection
from vsockproxy.errors import DialError
from vsockproxy.http.server import HttpServer, is_local
from vsockproxy.stats import RouteStats, TargetState

HOSTILE = "<script>alert(1)</script>&\"'"


class _Texts(HTMLParser):
    """The elements, attributes and texts of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep an element."""
        self.tags.add(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        """Keep a text."""
        self.text += data


def server(daemon: FakeDaemon) -> HttpServer:
    page = StatusPage(cast(Daemon, daemon))
    return metrics_server(CollectorRegistry(), daemon, page.answer)


@asynccontextmanager
async def browser(sock: socket.socket, daemon: FakeDaemon) -> AsyncIterator[httpx.AsyncClient]:
    """Serve the page of a daemon, and yield a client of it."""
    async with serving(sock, server(daemon)), httpx.AsyncClient(base_url=url(sock)) as client:
        yield client


def failing(name: str = "db") -> RouteStats:
    """Return a route with a client, whose target is down."""
    stats = RouteStats(
        Route(name, UnixEndpoint(f"/{name}"), UnixEndpoint("/guest"), Policy(max_connections=7))
    )
    stats.targets = [TargetState(UnixEndpoint("/guest"))]
    stats.targets[0].become("down")
    error = DialError(
        stats.targets[0].address, "refused", f"it said {HOSTILE}\x1b[31m", remedy="start it"
    )
    stats.targets[0].keep_error(error)
    stats.dial_failures["refused"] = 12
    stats.rejected["denied"] = 5
    stats.accept_pauses["max_connections"] = 3
    stats.open(Connection(1, stats.route, socket.AF_INET, ("203.0.113.7", 4000)))
    return stats


async def test_the_page_shows_states_errors_limits_and_clients(tcp: socket.socket) -> None:
    async with browser(tcp, FakeDaemon(failing())) as client:
        page = _Texts((await client.get("/")).text).text
    for shown in (
        "db",
        "unix:/guest down",
        "1 of 7",
        "rejected 5: denied",
        "queued 3: max_connections",
        "last error, ",
        "refused",
        "start it",
        "203.0.113.7:4000",
        "with a problem: 1",
    ):
        assert shown in page


@pytest.mark.parametrize("revision", ["", "abc-dirty"])
async def test_the_page_has_the_revision_if_the_build_knew_it(
    tcp: socket.socket, monkeypatch: pytest.MonkeyPatch, revision: str
) -> None:
    monkeypatch.setattr("vsockproxy.admin.page.REVISION", revision)
    async with browser(tcp, FakeDaemon(failing())) as client:
        page = _Texts((await client.get("/")).text).text
    assert ("revision abc-dirty" in page) == bool(revision)


async def test_hostile_texts_are_escaped_and_nothing_outside_is_loaded(tcp: socket.socket) -> None:
    daemon = FakeDaemon(failing(f"a{HOSTILE}\u202e"), not_ready=[HOSTILE])
    daemon.events.record("error", HOSTILE, {"route": HOSTILE, "error": HOSTILE})
    async with browser(tcp, daemon) as client:
        answer = await client.get("/", params={"match": HOSTILE, "refresh": "off"})
    page = _Texts(answer.text)
    assert HOSTILE in page.text
    assert "script" not in page.tags
    assert not page.tags & {"img", "link", "iframe", "object"}
    assert not [name for name, _ in page.attributes if name.startswith("on") or name == "src"]
    assert "\x1b" not in answer.text
    assert "\u202e" not in answer.text
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert answer.headers["cache-control"] == "no-store"


async def test_the_page_refreshes_itself_until_it_is_stopped(tcp: socket.socket) -> None:
    async with browser(tcp, FakeDaemon(failing())) as client:
        refreshed = _Texts((await client.get("/")).text)
        stopped = _Texts((await client.get("/?refresh=off")).text)
    assert ("http-equiv", "refresh") in refreshed.attributes
    assert ("http-equiv", "refresh") not in stopped.attributes
    assert "form" in stopped.tags - refreshed.tags


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ({}, ["db", "web"]),
        ({"show": "problems"}, ["db"]),
        ({"match": "WEB"}, ["web"]),
        ({"match": "guest"}, ["db"]),
        ({"match": "none"}, []),
    ],
)
async def test_a_query_selects_routes(
    tcp: socket.socket, query: dict[str, str], names: list[str]
) -> None:
    web = RouteStats(Route("web", TcpEndpoint(None, 80), TcpEndpoint("host", 80)))
    async with browser(tcp, FakeDaemon(failing(), web)) as client:
        page = (await client.get("/", params=query)).text
    assert [name for name in ("db", "web") if f"<b>{name}</b>" in page] == names


@pytest.mark.parametrize(
    "query", [{"page": "0"}, {"page": "99999999999"}, {"page": "-1"}, {"page": "x"}, {"page": "٣"}]
)
async def test_a_page_that_does_not_exist_is_an_existing_one(
    tcp: socket.socket, query: dict[str, str]
) -> None:
    async with browser(tcp, FakeDaemon(failing())) as client:
        answer = await client.get("/", params=query)
    assert answer.status_code == 200
    assert "<b>db</b>" in answer.text


async def test_an_unknown_parameter_is_an_error(tcp: socket.socket) -> None:
    async with browser(tcp, FakeDaemon(failing())) as client:
        answer = await client.get("/?rout=db")
    assert answer.status_code == 400
    assert "'rout'" in answer.text


# ---- who sees it ----


@pytest.mark.parametrize(
    ("address", "choice", "is_shown"),
    [
        ("127.0.0.1", "auto", True),
        ("127.0.0.1", "off", False),
        ("0.0.0.0", "auto", False),
        ("0.0.0.0", "on", True),
    ],
)
async def test_by_itself_the_page_is_on_local_listeners_only(
    address: str, choice: Any, is_shown: bool
) -> None:
    daemon = FakeDaemon(failing())
    daemon.config = replace(daemon.config, metrics_page=choice)
    with socket.create_server((address, 0)) as sock:
        sock.setblocking(False)
        async with browser(sock, daemon) as client:
            answer = (await client.get("/")).text
    assert ("203.0.113.7" in answer) == is_shown
    assert "/metrics" in answer or 'href="metrics"' in answer
    assert is_shown or "the status page, for people: off" in answer


def test_unix_and_loopback_listeners_are_local() -> None:
    with socket.socket(socket.AF_UNIX) as unix:
        assert is_local(unix)
    for address, expected in (("127.0.0.2", True), ("0.0.0.0", False)):
        with socket.socket() as sock:
            sock.bind((address, 0))
            assert is_local(sock) == expected
    with socket.socket(socket.AF_INET6) as sock:
        sock.bind(("::1", 0))
        assert is_local(sock)


def test_an_inherited_vsock_listener_is_not_local() -> None:
    """The listener is a fake: its family and address are those of a vsock socket."""
    fake = SimpleNamespace(family=40, getsockname=lambda: (3, 9490))
    assert not is_local(cast(socket.socket, fake))


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:9490", 200),
        ("127.0.0.1:9490", 200),
        ("[::1]:9490", 200),
        ("192.0.2.1", 200),
        ("relay.test:9490", 200),
        ("evil.example", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example:9490", 403),
        ("[::1", 403),
        ("<b>", 403),
    ],
)
async def test_a_name_that_another_site_can_rebind_gets_no_page(
    tcp: socket.socket, host: str, status: int
) -> None:
    daemon = FakeDaemon(failing())
    daemon.config = replace(daemon.config, metrics=(TcpEndpoint("relay.test", 9490),))
    async with browser(tcp, daemon) as client:
        answer = await client.get("/", headers={"Host": host})
        metrics = await client.get("/metrics", headers={"Host": host})
    assert answer.status_code == status
    assert ("203.0.113.7" in answer.text) == (status == 200)
    assert metrics.status_code == 200


async def test_a_post_changes_nothing(tcp: socket.socket) -> None:
    async with browser(tcp, FakeDaemon(failing())) as client:
        assert (await client.post("/")).status_code == 405


# ---- many ----


@pytest.mark.parametrize("query", ["", "?show=problems", "?match=r49&page=2"])
@in_one_of_three
async def test_a_page_of_many_routes_is_bounded_and_leaves_rounds_short(
    tcp: socket.socket, query: str
) -> None:
    many = routes(5000)
    for stats in many[::2]:
        stats.targets[0].become("down")
    connect_many(many[0])
    request = f"GET /{query} HTTP/1.0\r\n\r\n".encode()
    async with serving(tcp, server(FakeDaemon(*many))):
        await answer_to(tcp, request)
        gc.collect()  # what the test has made is not the answer's
        with short_rounds():
            page = (await answer_to(tcp, request)).decode()
    assert page.startswith("HTTP/1.1 200")
    assert 0 < page.count('data-name="Targets"') <= 100
    assert page.count('data-name="Client"') <= 50
    assert "of 5000" in page or query
