"""A defect in one reload, route or connection ends that one, and neither the daemon nor another."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from tests.daemon.running import (
    LOOPBACK,
    LOOPBACK_2,
    Running,
    accepts,
    exchange,
    running,
    scrape,
)
from tests.waiting import PATIENCE, until
from vsockproxy.address.endpoint import MuxEndpoint, TcpEndpoint, UnixEndpoint
from vsockproxy.config.settings import Config, Policy, Route
from vsockproxy.connection import Connection
from vsockproxy.daemon import http_servers
from vsockproxy.daemon.daemon import Daemon
from vsockproxy.errors import OrderError
from vsockproxy.listen import listener as listener_module
from vsockproxy.listen.listener import RouteListener
from vsockproxy.listen.renew import serve_renewed
from vsockproxy.pump.transfer import Accepted
from vsockproxy.stats import RouteStats

POLICY = Policy(half_close="forward")


def route(name: str, guest: MuxEndpoint, listen: TcpEndpoint = LOOPBACK) -> Route:
    return Route(name, listen, guest, POLICY)


async def live_client(daemon: Running, name: str = "echo") -> trio.SocketStream:
    client = await daemon.connect(name)
    await client.send_all(b"x")
    assert await client.receive_some() == b"x"
    return client


def recorded(daemon: Daemon, event: str) -> list[str]:
    return [one.message for one in daemon.events.after(0) if one.event == event]


# ---- reloads ----


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), MemoryError()])
async def test_a_defect_while_a_reload_reads_is_a_failed_reload(
    guest: MuxEndpoint, error: Exception
) -> None:
    def load() -> Config:
        raise error

    config = Config((route("echo", guest),))
    daemon = Running(Daemon(config, load=load))
    async with trio.open_nursery() as nursery:
        await nursery.start(daemon.run)
        client = await live_client(daemon)
        problem = f"{type(error).__name__}: {error}"
        with pytest.raises(OrderError) as failed:
            await daemon.daemon.reload()
        assert str(failed.value) == problem
        assert recorded(daemon.daemon, "reload_failed") == [problem]
        assert daemon.daemon.reloads.results == {"success": 0, "failure": 1}
        assert await exchange(client, b"on") == b"on"
        nursery.cancel_scope.cancel()


async def test_a_defect_while_a_reload_is_applied_brings_the_old_configuration_back(
    guest: MuxEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_once(self: RouteListener, to: Route) -> None:
        monkeypatch.undo()
        raise MemoryError

    stays, gone = route("echo", guest), route("gone", guest, LOOPBACK_2)
    fresh = route("fresh", guest, TcpEndpoint("127.0.0.3", 0))
    async with running(gone, stays) as daemon:
        client = await live_client(daemon)
        before = daemon.daemon.config
        monkeypatch.setattr(RouteListener, "reconfigure", fail_once)
        with pytest.raises(MemoryError):
            await daemon.reload(replace(stays, policy=replace(POLICY, idle_timeout=60.0)), fresh)
        assert daemon.daemon.config is before
        assert {one.route.name for one in daemon.supervisor.listeners.values()} == {"echo", "gone"}
        assert await exchange(await daemon.connect("gone"), b"x") == b"x"
        assert await exchange(client, b"on") == b"on"
        await daemon.reload(stays, fresh)
        assert await exchange(await daemon.connect("fresh"), b"x") == b"x"


async def test_a_defect_while_a_reload_opens_its_endpoints_leaves_none_of_them_open(
    guest: MuxEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    stays = route("echo", guest)
    fresh = [route(str(n), guest, TcpEndpoint(f"127.0.0.{n}", 0)) for n in (3, 4)]
    async with running(stays) as daemon:
        listen = daemon.daemon._sockets._listen
        ports: list[int] = []

        def fail_at_the_second(*arguments: object) -> object:
            if ports:
                raise MemoryError
            opened = listen(*arguments)  # type: ignore[arg-type]
            ports.append(opened[0].sock.getsockname()[1])
            return opened

        monkeypatch.setattr(daemon.daemon._sockets, "_listen", fail_at_the_second)
        with pytest.raises(MemoryError):
            await daemon.reload(stays, *fresh)
        assert not await accepts(ports[0], "127.0.0.3")
        assert await exchange(await daemon.connect(), b"x") == b"x"


# ---- routes ----


async def test_an_acceptor_with_a_defect_is_started_again_and_connections_go_on(
    guest: MuxEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener_module, "_AFTER_DEFECT", 0.0)
    indirect = Route("echo", LOOPBACK, guest, replace(POLICY, direct="off"))
    async with running(indirect) as daemon:
        client = await live_client(daemon)
        accept = daemon.daemon._pump.accept

        def fail_once(listener: int, room: int) -> list[Accepted]:
            monkeypatch.setattr(daemon.daemon._pump, "accept", accept)
            raise RuntimeError("a defect")

        monkeypatch.setattr(daemon.daemon._pump, "accept", fail_once)
        assert await exchange(await daemon.connect(), b"new") == b"new"
        assert await exchange(client, b"on") == b"on"
        [message] = recorded(daemon.daemon, "listener_error")
        assert daemon.daemon.not_ready() == [f"route echo: {message.split('(')[1][:-1]}"]


async def test_a_metrics_listener_with_a_defect_serves_again(
    guest: MuxEndpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_servers, "_PAUSE", 0.0)
    metrics = UnixEndpoint(str(tmp_path / "metrics"))

    async def fail_once(*_: object) -> None:
        monkeypatch.setattr(http_servers, "serve_renewed", serve_renewed)
        raise RuntimeError("a defect")

    monkeypatch.setattr(http_servers, "serve_renewed", fail_once)
    async with running(route("echo", guest), metrics=metrics) as daemon:
        await until(lambda: recorded(daemon.daemon, "http_server_failed"))
        with trio.fail_after(PATIENCE):
            assert "vsockproxy_build_info" in await scrape(metrics)
        await trio.Path(metrics.path).unlink()
        await until(Path(metrics.path).exists)


async def test_an_error_while_an_acceptor_waits_for_clients_ends_nothing(
    guest: MuxEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener_module, "_AFTER_DEFECT", 0.0)
    indirect = Route("echo", LOOPBACK, guest, replace(POLICY, direct="off"))
    async with running(indirect) as daemon:
        client = await live_client(daemon)
        sock = daemon.supervisor.listeners[LOOPBACK].sockets[0].sock
        wait_readable = trio.lowlevel.wait_readable

        async def fail_once(at: int | socket.socket) -> None:
            if at is sock:
                monkeypatch.undo()
                raise OSError(9, "Bad file descriptor")
            await wait_readable(at)

        monkeypatch.setattr(trio.lowlevel, "wait_readable", fail_once)
        assert await exchange(await daemon.connect(), b"new") == b"new"  # its acceptor fails next
        await until(lambda: recorded(daemon.daemon, "listener_error"))
        assert await exchange(await daemon.connect(), b"new") == b"new"
        assert await exchange(client, b"on") == b"on"


async def test_a_route_that_ends_by_a_defect_is_off_until_a_reload_and_others_go_on(
    guest: MuxEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    stays, off = route("echo", guest), route("off", guest, LOOPBACK_2)
    breaks = trio.Event()
    serve = RouteListener.serve

    async def serve_until_it_breaks(self: RouteListener) -> bool:
        if self.route.name == "off":
            async with trio.open_nursery() as nursery:
                nursery.start_soon(serve, self)
                await breaks.wait()
                raise RuntimeError("a defect")
        return await serve(self)

    monkeypatch.setattr(RouteListener, "serve", serve_until_it_breaks)
    async with running(off, stays) as daemon:
        client = await live_client(daemon)
        address = daemon.address("off")
        assert isinstance(address, TcpEndpoint)
        breaks.set()
        await until(daemon.daemon.not_ready)
        assert daemon.daemon.not_ready() == [
            "route off: a defect ended it, see route_error in the log; vsockproxy reload"
        ]
        assert not await accepts(address.port, "127.0.0.2")
        assert await exchange(client, b"on") == b"on"
        monkeypatch.undo()
        await daemon.reload(off, stays)
        assert daemon.daemon.not_ready() == []
        assert await exchange(await daemon.connect("off"), b"x") == b"x"


# ---- connections ----


async def test_a_defect_at_the_end_of_a_connection_ends_no_other(
    guest: MuxEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: RouteStats, connection: Connection, reason: str, *_: object) -> None:
        raise RuntimeError("a defect")

    async with running(route("echo", guest)) as daemon:
        client = await live_client(daemon)
        with monkeypatch.context() as patch:
            patch.setattr(RouteStats, "close", fail)
            assert await exchange(await daemon.connect(), b"x") == b"x"
            await until(lambda: recorded(daemon.daemon, "connection_error"))
        assert await exchange(client, b"on") == b"on"
        assert daemon.supervisor.admission.live <= 1
