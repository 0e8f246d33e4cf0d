"""Host names of listeners: looked up beside the event loop, within a time limit."""

from __future__ import annotations

import socket
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from tests.daemon.running import LOOPBACK, Running, exchange, running
from tests.fake_services import echo, mux_server, unused_tcp_port
from tests.waiting import until
from vsockproxy.address.endpoint import MuxEndpoint, TcpEndpoint
from vsockproxy.config.settings import Policy, Route
from vsockproxy.errors import ListenError
from vsockproxy.listen import names
from vsockproxy.listen.names import Names

HOST = "lb.example.org"
FORWARD = Policy(half_close="forward")


class FakeResolver:
    """A fake of getaddrinfo whose name server is silent until `answer` is set.

    Attributes:
      asked: set once a look-up waits.
    """

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.answer = threading.Event()

    def look_up(self, host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        assert host == HOST
        self.asked.set()
        assert self.answer.wait(30)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeResolver]:
    fake = FakeResolver()
    monkeypatch.setattr(socket, "getaddrinfo", fake.look_up)
    yield fake
    fake.answer.set()


@pytest.fixture
async def route(tmp_path: Path) -> AsyncIterator[Route]:
    """A route to a guest that echoes."""
    async with mux_server(tmp_path / "guest.sock", {80: echo}) as server:
        yield Route("echo", LOOPBACK, MuxEndpoint(str(server.path), 80), FORWARD)


async def served(daemon: Running) -> bool:
    """Return whether a new client of the unchanged route is served now."""
    address = daemon.address("echo")
    assert isinstance(address, TcpEndpoint)
    client = trio.socket.socket()
    await client.connect((address.host, address.port))
    with trio.fail_after(5):
        return await exchange(trio.SocketStream(client), b"x") == b"x"


async def test_clients_are_served_while_a_reload_looks_up_a_listeners_name(
    route: Route, resolver: FakeResolver
) -> None:
    port = unused_tcp_port()
    named = replace(route, name="named", listen=TcpEndpoint(HOST, port))
    async with running(route) as daemon, trio.open_nursery() as nursery:
        nursery.start_soon(daemon.reload, route, named)
        await until(resolver.asked.is_set)
        assert await served(daemon)
        resolver.answer.set()
        await until(lambda: daemon.daemon.reloads.results["success"])
        assert accepts_now(port)


async def test_clients_are_served_while_a_resume_looks_up_a_listeners_name(
    route: Route, resolver: FakeResolver
) -> None:
    port = unused_tcp_port()
    named = replace(route, name="named", listen=TcpEndpoint(HOST, port))
    resolver.answer.set()
    async with running(route, named) as daemon, trio.open_nursery() as nursery:
        await daemon.daemon.drain("named")
        assert not accepts_now(port)
        resolver.asked.clear()
        resolver.answer.clear()
        nursery.start_soon(daemon.daemon.resume, "named")
        await until(resolver.asked.is_set)
        assert await served(daemon)
        resolver.answer.set()
        await until(lambda: len(daemon.supervisor.listeners) == 2)


async def test_a_stop_during_a_look_up_opens_nothing(route: Route, resolver: FakeResolver) -> None:
    port = unused_tcp_port()
    named = replace(route, name="named", listen=TcpEndpoint(HOST, port))
    async with running(route) as daemon:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(daemon.reload, route, named)
            await until(resolver.asked.is_set)
            daemon.daemon.stop()
            resolver.answer.set()
        assert not accepts_now(port)
        await daemon.ended.wait()
    assert daemon.drained is True


async def test_a_silent_name_server_fails_a_reload_in_time_and_changes_nothing(
    route: Route, resolver: FakeResolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(names, "_PATIENCE", 0.01)
    named = replace(route, name="named", listen=TcpEndpoint(HOST, 1))
    async with running(route) as daemon:
        with pytest.raises(ListenError) as caught:
            await daemon.reload(route, named)
        assert caught.value.reason == "timeout"
        assert HOST in str(caught.value)
        assert caught.value.__notes__ == ["route named"]
        assert await served(daemon)


async def test_a_host_name_that_does_not_resolve_is_named_in_the_error() -> None:
    endpoint = TcpEndpoint("no-such-host.invalid", 0)
    with pytest.raises(ListenError) as caught:
        await Names().resolve([endpoint])
    assert caught.value.reason == "name"
    assert "no-such-host.invalid" in str(caught.value)


async def test_a_system_without_threads_to_give_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(trio.to_thread, "run_sync", refuse)
    with pytest.raises(ListenError, match="can't start new thread"):
        await Names().resolve([TcpEndpoint(HOST, 1)])


async def test_a_literal_address_is_not_looked_up(resolver: FakeResolver) -> None:
    for host in (None, "127.0.0.1", "::1"):
        assert await Names().resolve([TcpEndpoint(host, 1)]) == {}
    assert not resolver.asked.is_set()


def accepts_now(port: int) -> bool:
    """Return whether a listener accepts at a port of 127.0.0.1, without a look-up."""
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0
