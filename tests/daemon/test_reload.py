"""Reloads of a daemon with real clients: listeners, connections, and reloads that fail."""

from __future__ import annotations

import errno
import socket
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.daemon.running import (
    LOOPBACK,
    LOOPBACK_2,
    exchange,
    files_of,
    running,
    scrape,
    until_live,
)
from tests.fake_services import mux_server, says
from tests.sockets import no_descriptor_left_over, read_to_end
from tests.waiting import PATIENCE, until
from vsockproxy.address.endpoint import (
    MuxEndpoint,
    TcpEndpoint,
    UnixEndpoint,
)
from vsockproxy.config.process import Limits, TlsSettings
from vsockproxy.config.settings import Config, Policy, PumpChoice, Route
from vsockproxy.daemon.http_servers import HttpServers
from vsockproxy.errors import ConfigError, ListenError, Problem


async def test_a_changed_target_applies_only_to_new_connections(
    guest: MuxEndpoint, tmp_path: Path, choice: PumpChoice
) -> None:
    async with mux_server(tmp_path / "other", {1: says(b"the other")}) as other:
        policy = Policy(half_close="forward")
        route = Route("web", LOOPBACK, guest, policy)
        async with running(route, choice=choice) as daemon:
            live = await daemon.connect("web")
            await live.send_all(b"before")
            assert await live.receive_some() == b"before"
            address = daemon.address("web")
            target = MuxEndpoint(str(other.path), 1)
            await daemon.reload(replace(route, target=target))
            assert daemon.address("web") == address
            async with await daemon.connect("web") as client:
                assert await read_to_end(client) == b"the other"
            assert await exchange(live, b"after") == b"after"
            await until(lambda: daemon.stats("web").connections >= 2)
            assert daemon.stats("web").connections == 2
            assert daemon.daemon.reloads.results == {"success": 1, "failure": 0}


async def test_a_removed_route_refuses_new_clients_and_drains(guest: MuxEndpoint) -> None:
    gone = Route("gone", LOOPBACK, guest, Policy(half_close="forward"))
    stays = Route("stays", LOOPBACK_2, guest, Policy(half_close="forward"))
    async with running(gone, stays) as daemon:
        live = await daemon.connect("gone")
        await live.send_all(b"x")
        assert await live.receive_some() == b"x"
        address = daemon.address("gone")
        assert isinstance(address, TcpEndpoint)
        await daemon.reload(stays)
        with pytest.raises(OSError, match="all attempts to connect"):
            await trio.open_tcp_stream("127.0.0.1", address.port)
        assert daemon.stats("gone").live
        assert await exchange(live, b"last") == b"last"
        await until(lambda: len(daemon.supervisor.stats()) == 1)
        assert await exchange(await daemon.connect("stays"), b"x") == b"x"


async def test_a_renamed_route_keeps_its_port(guest: MuxEndpoint) -> None:
    route = Route("old", LOOPBACK, guest, Policy(half_close="forward"))
    async with running(route) as daemon:
        address = daemon.address("old")
        await daemon.reload(replace(route, name="new"))
        assert daemon.address("new") == address
        assert await exchange(await daemon.connect("new"), b"x") == b"x"


async def test_a_stop_during_a_reload_drains_and_starts_nothing_more(
    guest: MuxEndpoint, tmp_path: Path
) -> None:
    at = [UnixEndpoint(str(tmp_path / name)) for name in ("one", "two", "three")]
    for before, after in (
        ([Route("old", at[0], guest)], [Route("new", at[0], guest)]),
        ([Route("gone", at[0], guest)], [Route("fresh", at[1], guest)]),
    ):
        stays = Route("stays", at[2], guest)
        async with running(*before, stays) as daemon:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(daemon.reload, *after, stays))
                await until(lambda: daemon.supervisor._draining)
                daemon.daemon.stop()
            with trio.fail_after(5):
                await daemon.ended.wait()
            assert daemon.drained is True
        assert files_of(at) == []


async def test_a_stop_during_a_reload_leaves_no_port_without_an_acceptor(
    guest: MuxEndpoint, tmp_path: Path
) -> None:
    old, new = (UnixEndpoint(str(tmp_path / name)) for name in ("old", "new"))
    async with running(Route("gone", old, guest, Policy(half_close="forward"))) as daemon:
        client = await daemon.connect("gone")
        await client.send_all(b"before")
        assert await client.receive_some() == b"before"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(daemon.reload, Route("fresh", new, guest))
            await until(lambda: daemon.supervisor._draining)
            assert files_of([new]) == [new.path]
            daemon.daemon.stop()
        assert files_of([old, new]) == []
        assert daemon.daemon.reloads.results == {"success": 0, "failure": 0}
        assert await exchange(client, b"after") == b"after"
        with trio.fail_after(5):
            await daemon.ended.wait()


@pytest.mark.parametrize("ticks", [0, 1])
async def test_a_drain_during_a_reload_drains_the_reloaded_route(
    guest: MuxEndpoint, tmp_path: Path, ticks: int
) -> None:
    at = [UnixEndpoint(str(tmp_path / name)) for name in ("gone", "before", "after")]
    async with running(Route("gone", at[0], guest), Route("moves", at[1], guest)) as daemon:
        moved = Route("moves", at[2], guest)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(daemon.reload, moved)
            with trio.fail_after(5):
                await until(lambda: daemon.daemon.config.routes == (moved,))
                for _ in range(ticks):
                    await trio.lowlevel.checkpoint()
                await daemon.daemon.drain("moves")
        assert daemon.supervisor.state_of(daemon.stats("moves")) == "drained"
        assert files_of(at) == []
        await daemon.daemon.resume("moves")
        async with await daemon.connect("moves") as client:
            await client.send_all(b"x")
            assert await client.receive_some() == b"x"


async def test_a_route_that_moves_keeps_its_counters(guest: MuxEndpoint, tmp_path: Path) -> None:
    at = [UnixEndpoint(str(tmp_path / name)) for name in ("one", "two")]
    one, two = Route("one", at[0], guest), Route("two", at[1], guest)
    for _ in range(10):
        async with running(one, two) as daemon:
            daemon.stats("one").connections = 7
            daemon.stats("two").connections = 9
            await daemon.reload(replace(one, listen=at[1]), replace(two, listen=at[0]))
            counted = [daemon.stats(name).connections for name in ("one", "two")]
            assert counted == [7, 9]


async def test_a_moved_route_serves_as_many_as_its_limit_once_its_old_connections_have_ended(
    guest: MuxEndpoint, choice: PumpChoice
) -> None:
    most = 6
    route = Route("web", LOOPBACK, guest, Policy(half_close="forward", max_connections=most))
    async with running(route, choice=choice) as daemon:

        async def served() -> trio.SocketStream:
            client = await daemon.connect("web")
            await client.send_all(b"x")
            assert await client.receive_some() == b"x"
            return client

        old = [await served() for _ in range(most - 1)]
        await daemon.reload(replace(route, listen=LOOPBACK_2))
        for client in old:
            assert await exchange(client, b"last") == b"last"
        await until(lambda: not daemon.stats("web").live)
        with trio.fail_after(PATIENCE):
            for client in [await served() for _ in range(most)]:
                await client.aclose()


@pytest.mark.parametrize("also", ["nothing", "the limits"])
async def test_a_reload_that_does_not_change_a_route_gives_it_no_more_bandwidth(
    guest: MuxEndpoint, choice: PumpChoice, also: str
) -> None:
    size, rate = 300_000, 1_000_000
    route = Route("web", LOOPBACK, guest, Policy(half_close="forward", bandwidth=rate))
    async with running(route, choice=choice) as daemon:
        started = trio.current_time()
        async with trio.open_nursery() as nursery:
            for attempt in range(3):
                nursery.start_soon(exchange, await daemon.connect("web"), bytes(size))
                await until_live(daemon, "web")
                limits = Limits(1000 if also == "nothing" else 1000 + attempt)
                changed = replace(daemon.daemon.config, routes=(replace(route),), limits=limits)
                await daemon.daemon.replace(partial(replace, changed))
        # A tenth of a second's bytes may go at once; a limit makes late, never early.
        assert trio.current_time() - started >= 3 * size / rate - 0.11


async def test_a_reload_with_a_port_in_use_changes_nothing(
    guest: MuxEndpoint, tmp_path: Path
) -> None:
    route = Route("echo", LOOPBACK, guest, Policy(half_close="forward"))
    fresh = Route("fresh", UnixEndpoint(str(tmp_path / "fresh")), guest)
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = Route("taken", TcpEndpoint("127.0.0.1", other.getsockname()[1]), guest)
        async with running(route) as daemon:
            with pytest.raises(ListenError):
                await daemon.reload(fresh, taken)
            assert not (tmp_path / "fresh").exists()
            assert await exchange(await daemon.connect(), b"x") == b"x"
            assert daemon.daemon.reloads.results == {"success": 0, "failure": 1}


async def test_a_reload_of_a_wrong_file_changes_nothing(guest: MuxEndpoint) -> None:
    def load() -> Config:
        raise ConfigError("config.toml", (Problem("route", "is wrong"),))

    route = Route("echo", LOOPBACK, guest, Policy(half_close="forward"))
    async with running(route) as daemon:
        with pytest.raises(ConfigError):
            await daemon.daemon.replace(load)
        assert await exchange(await daemon.connect(), b"x") == b"x"
        assert daemon.daemon.reloads.results["failure"] == 1


async def test_a_hundred_reloads_under_load_lose_no_connection_and_no_descriptor(
    guest: MuxEndpoint, choice: PumpChoice
) -> None:
    kept = Route("echo", LOOPBACK, guest, Policy(half_close="forward"))
    other = Route("other", LOOPBACK_2, guest)
    async with running(kept, choice=choice) as daemon:
        done = 0
        stop = trio.Event()

        async def load() -> None:
            nonlocal done
            while not stop.is_set():
                assert await exchange(await daemon.connect(), b"hello") == b"hello"
                done += 1

        await daemon.reload(kept)  # its worker thread's descriptors are trio's to keep
        assert await exchange(await daemon.connect(), b"hello") == b"hello"
        done += 1  # the descriptor of the VMM's process is the pump's to keep
        await daemon.closed("echo", "finished", done)
        with no_descriptor_left_over():
            async with trio.open_nursery() as clients:
                for _ in range(10):
                    clients.start_soon(load)
                for number in range(100):
                    policy = replace(kept.policy, connect_timeout=1.0 + number)
                    routes = [replace(kept, policy=policy), other]
                    await daemon.reload(*routes[: 1 + number % 2])
                    before = done
                    while done < before + 5:
                        await trio.lowlevel.checkpoint()
                await daemon.reload(kept)
                stop.set()
            await daemon.closed("echo", "finished", done)
        assert daemon.stats("echo").closed == {"finished": done}
        assert daemon.daemon.reloads.results["success"] == 102


async def test_a_changed_metrics_listener_moves(guest: MuxEndpoint, tmp_path: Path) -> None:
    route = Route("echo", LOOPBACK, guest)
    one, two = (UnixEndpoint(str(tmp_path / name)) for name in ("one", "two"))
    async with running(route, metrics=one) as daemon:
        assert "vsockproxy_build_info" in await scrape(one)
        await daemon.reload(route, metrics=two)
        assert "vsockproxy_build_info" in await scrape(two)
        assert not (tmp_path / "one").exists()


async def test_metrics_at_several_addresses_are_served_and_move_one_by_one(
    guest: MuxEndpoint, tmp_path: Path
) -> None:
    route = Route("echo", LOOPBACK, guest)
    one, two, three = (UnixEndpoint(str(tmp_path / name)) for name in ("one", "two", "three"))
    async with running(route, metrics=one) as daemon:
        for metrics in ((one, two), (two, three)):
            await daemon.daemon.replace(partial(Config, (route,), metrics))
            for endpoint in metrics:
                assert "vsockproxy_build_info" in await scrape(endpoint)
        assert files_of([one, two, three]) == [two.path, three.path]


async def test_a_removed_metrics_socket_is_bound_again_and_serves(
    guest: MuxEndpoint, tmp_path: Path
) -> None:
    metrics = UnixEndpoint(str(tmp_path / "metrics"))
    async with running(Route("echo", LOOPBACK, guest), metrics=metrics) as daemon:
        await trio.Path(metrics.path).unlink()
        await until(lambda: files_of([metrics]))
        assert "vsockproxy_build_info" in await scrape(metrics)
        daemon.daemon.stop()
        await daemon.ended.wait()
    assert files_of([metrics]) == []


async def test_metrics_that_fail_while_they_are_served_end_no_route_and_are_served_again(
    guest: MuxEndpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails = trio.Event()

    async def serve(*_: object) -> None:
        await fails.wait()
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("vsockproxy.http.server.HttpServer.serve", serve)
    route = Route("echo", LOOPBACK, guest, Policy(half_close="forward"))
    metrics = UnixEndpoint(str(tmp_path / "metrics"))
    async with running(route, metrics=metrics) as daemon:
        fails.set()
        await trio.testing.wait_all_tasks_blocked()
        assert await exchange(await daemon.connect(), b"on") == b"on"
        monkeypatch.undo()
        with trio.fail_after(PATIENCE):
            assert "vsockproxy_build_info" in await scrape(metrics)
        await daemon.reload(route, metrics=metrics)
        assert "vsockproxy_build_info" in await scrape(metrics)


async def test_certificates_are_read_beside_the_event_loop(
    guest: MuxEndpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readers: list[int] = []

    def read(_: HttpServers, __: Config) -> None:
        readers.append(threading.get_ident())

    monkeypatch.setattr(HttpServers, "certificates", read)
    async with running(Route("echo", LOOPBACK, guest)) as daemon:
        metrics = UnixEndpoint(str(tmp_path / "metrics"))
        tls = TlsSettings(str(tmp_path / "certificate"))
        config = replace(daemon.daemon.config, metrics=(metrics,), metrics_tls=tls)
        await daemon.daemon.replace(lambda: config)
    assert len(readers) == 1
    assert readers != [threading.get_ident()]


async def test_alive_returns_once_the_pump_threads_answer(
    guest: MuxEndpoint, choice: PumpChoice
) -> None:
    async with running(Route("echo", LOOPBACK, guest), choice=choice) as daemon:
        with trio.fail_after(5):
            await daemon.daemon.alive()
