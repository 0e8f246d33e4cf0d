"""The daemon in one process: real clients, real targets, from the first listener to the drain."""

from __future__ import annotations

import errno
import os
import resource
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.fake_services import answers_nothing, echo, hold, mux_server, says
from tests.sockets import ends_by_reset, no_descriptor_left_over, read_to_end, stream
from vsockproxy.address.endpoint import (
    FdEndpoint,
    ListenEndpoint,
    MuxEndpoint,
    TcpEndpoint,
    UnixEndpoint,
)
from vsockproxy.config.settings import Config, Policy, PumpChoice, PumpSettings, Route
from vsockproxy.daemon.daemon import Daemon
from vsockproxy.errors import ConfigError, ListenError, Problem
from vsockproxy.stats import RouteStats

LOOPBACK = TcpEndpoint("127.0.0.1", 0)
LOOPBACK_2 = TcpEndpoint("127.0.0.2", 0)
GUEST_PORT = 80


@pytest.fixture(params=["native", "portable"])
def choice(request: pytest.FixtureRequest) -> PumpChoice:
    value: PumpChoice = request.param
    return value


@pytest.fixture
async def guest(tmp_path: Path) -> AsyncIterator[MuxEndpoint]:
    """A vsock-mux whose guest echoes on one port."""
    async with mux_server(tmp_path / "guest.sock", {GUEST_PORT: echo}) as server:
        yield MuxEndpoint(str(server.path), GUEST_PORT)


class Running:
    """A daemon that runs, and how to reach its routes."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.supervisor = daemon.supervisor
        self.drained: bool | None = None
        self.ended = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        self.drained = await self.daemon.run(task_status=task_status)
        self.ended.set()

    def stats(self, name: str) -> RouteStats:
        return next(s for s in self.supervisor.stats() if s.route.name == name)

    def address(self, name: str) -> ListenEndpoint:
        """Where a route really listens."""
        listeners = self.supervisor.listeners.values()
        listener = next(x for x in listeners if x.route.name == name)
        return listener.sockets[0].endpoint

    async def connect(self, name: str = "echo") -> trio.SocketStream:
        address = self.address(name)
        if isinstance(address, UnixEndpoint):
            sock = trio.socket.socket(socket.AF_UNIX)
            await sock.connect(address.path)
            return trio.SocketStream(sock)
        assert isinstance(address, TcpEndpoint)
        assert address.host is not None
        return await trio.open_tcp_stream(address.host, address.port)

    async def reload(self, *routes: Route, metrics: UnixEndpoint | None = None) -> None:
        config = replace(self.daemon.config, routes=routes, metrics=metrics)
        await self.daemon.replace(lambda: config)

    async def closed(self, name: str, reason: str, number: int = 1) -> None:
        """Wait until so many connections of a route have ended for a reason."""
        with trio.fail_after(10):
            while self.stats(name).closed[reason] < number:
                await trio.lowlevel.checkpoint()


@asynccontextmanager
async def running(
    *routes: Route,
    choice: PumpChoice = "auto",
    metrics: UnixEndpoint | None = None,
    **inherited: socket.socket,
) -> AsyncIterator[Running]:
    config = Config(routes, metrics, pump=PumpSettings(choice))
    daemon = Running(Daemon(config, inherited={k: [v] for k, v in inherited.items()}))
    async with trio.open_nursery() as nursery:
        await nursery.start(daemon.run)
        yield daemon
        nursery.cancel_scope.cancel()


async def scrape(endpoint: UnixEndpoint) -> str:
    async with await trio.open_unix_socket(endpoint.path) as stream:
        await stream.send_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        return (await read_to_end(stream)).decode()


async def exchange(client: trio.SocketStream, data: bytes) -> bytes:
    async with client:
        await client.send_all(data)
        await client.send_eof()
        return await read_to_end(client)


# ---- relaying ----


async def test_bytes_go_to_a_guest_behind_a_vmm_socket_and_come_back(
    guest: MuxEndpoint, choice: PumpChoice
) -> None:
    route = Route("echo", LOOPBACK, guest, Policy(half_close="forward"))
    async with running(route, choice=choice) as daemon:
        assert await exchange(await daemon.connect(), b"x" * 100_000) == b"x" * 100_000
        await daemon.closed("echo", "finished")
        stats = daemon.stats("echo")
        assert (stats.upstream_bytes, stats.downstream_bytes) == (100_000, 100_000)
        assert stats.connections == 1
        assert sum(stats.dial_seconds.counts) == 1
        assert sum(stats.connection_seconds.counts) == 1


async def test_a_unix_listener_serves_and_its_file_goes_with_it(
    guest: MuxEndpoint, tmp_path: Path
) -> None:
    path = tmp_path / "front.sock"
    route = Route("echo", UnixEndpoint(str(path)), guest, Policy(half_close="forward"))
    async with running(route) as daemon:
        assert await exchange(await daemon.connect(), b"hello") == b"hello"
    assert not path.exists()


async def test_a_guests_connection_to_the_vmm_socket_reaches_a_host_service(
    tmp_path: Path,
) -> None:
    async with trio.open_nursery() as nursery:
        [service] = await nursery.start(partial(trio.serve_tcp, echo, 0, host="127.0.0.1"))
        port = service.socket.getsockname()[1]
        mux = MuxEndpoint(str(tmp_path / "vm.sock"), 7000)
        async with running(Route("out", mux, TcpEndpoint("127.0.0.1", port))):
            sock = trio.socket.socket(socket.AF_UNIX)
            await sock.connect(f"{tmp_path}/vm.sock_7000")
            assert await exchange(trio.SocketStream(sock), b"from the guest") == b"from the guest"
        nursery.cancel_scope.cancel()


async def test_an_inherited_socket_serves_a_route(guest: MuxEndpoint) -> None:
    with socket.create_server(("127.0.0.1", 0)) as inherited:
        port = inherited.getsockname()[1]
        route = Route("echo", FdEndpoint("web"), guest, Policy(half_close="forward"))
        async with running(route, web=inherited):
            client = await trio.open_tcp_stream("127.0.0.1", port)
            assert await exchange(client, b"hello") == b"hello"


async def test_byte_counters_move_while_a_connection_runs(
    guest: MuxEndpoint, choice: PumpChoice
) -> None:
    async with (
        running(Route("echo", LOOPBACK, guest), choice=choice) as daemon,
        await daemon.connect() as client,
    ):
        await client.send_all(b"12345")
        assert await client.receive_some() == b"12345"
        stats = daemon.stats("echo")
        assert len(stats.live) == 1
        with trio.fail_after(5):  # a byte is counted when it has gone, a moment later
            while (stats.upstream_bytes, stats.downstream_bytes) != (5, 5):
                await trio.lowlevel.checkpoint()
        assert stats.closed.total() == 0


async def test_a_routes_bandwidth_holds_for_its_connections_together(
    guest: MuxEndpoint, choice: PumpChoice
) -> None:
    size, rate = 100_000, 1_000_000
    policy = Policy(half_close="forward", bandwidth=rate)
    async with running(Route("echo", LOOPBACK, guest, policy), choice=choice) as daemon:
        started = trio.current_time()
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(exchange, await daemon.connect(), bytes(size))
        # A tenth of a second's bytes may go at once; a limit makes late, never early.
        assert trio.current_time() - started >= 3 * size / rate - 0.11


# ---- failures stay where they happen ----


async def test_a_client_whose_target_refuses_is_reset_and_counted(tmp_path: Path) -> None:
    nobody = UnixEndpoint(str(tmp_path / "nobody.sock"))
    async with running(Route("dead", LOOPBACK, nobody)) as daemon:
        assert await ends_by_reset(await daemon.connect("dead"))
        await daemon.closed("dead", "dial_not_found")
        assert daemon.stats("dead").dial_failures == {"not_found": 1}


async def test_a_guest_that_never_answers_holds_up_nobody_else(
    tmp_path: Path, guest: MuxEndpoint
) -> None:
    async with mux_server(tmp_path / "silent", {1: echo}, answers_nothing) as silent:
        target = MuxEndpoint(str(silent.path), 1)
        routes = [
            Route("silent", LOOPBACK_2, target, Policy(connect_timeout=0.2)),
            Route("echo", LOOPBACK, guest, Policy(half_close="forward")),
        ]
        async with running(*routes) as daemon:
            waiting = [await daemon.connect("silent") for _ in range(20)]
            assert await exchange(await daemon.connect("echo"), b"x") == b"x"
            assert daemon.stats("silent").closed.total() == 0, "they still wait"
            for client in waiting:
                assert await ends_by_reset(client)
            await daemon.closed("silent", "dial_no_answer", 20)


async def test_a_port_that_is_taken_names_the_route_and_leaves_nothing_open(
    guest: MuxEndpoint, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other, no_descriptor_left_over():
        taken = TcpEndpoint("127.0.0.1", other.getsockname()[1])
        routes = [
            Route("front", UnixEndpoint(str(tmp_path / "front.sock")), guest),
            Route("taken", taken, guest),
        ]
        with pytest.RaisesGroup(ListenError, allow_unwrapped=True, flatten_subgroups=True) as info:
            async with running(*routes):
                pass
        error = _only(info.value)
        assert isinstance(error, ListenError)
        assert (error.reason, error.errno) == ("in_use", errno.EADDRINUSE)
        assert error.__notes__ == ["route taken"]
    assert not (tmp_path / "front.sock").exists()


async def test_running_out_of_descriptors_stops_nothing_for_good(guest: MuxEndpoint) -> None:
    route = Route("echo", LOOPBACK, guest, Policy(half_close="forward"))
    async with running(route) as daemon:
        address = daemon.address("echo")
        assert isinstance(address, TcpEndpoint)
        # The descriptors are counted with the first client: that there are fewer is news.
        assert await exchange(await daemon.connect(), b"first") == b"first"
        early = socket.socket()
        with no_descriptors_left():
            early.connect(("127.0.0.1", address.port))
            with trio.fail_after(10):
                while not daemon.stats("echo").accept_errors:
                    await trio.lowlevel.checkpoint()
        assert await exchange(stream(early), b"waited") == b"waited"
        assert await exchange(await daemon.connect(), b"new") == b"new"


async def test_a_defect_in_one_connection_ends_that_connection_alone(
    guest: MuxEndpoint,
) -> None:
    class Defective:
        name = why = "portable"

        async def transfer(self, client: int, target: int, *_: object) -> None:
            os.close(client)
            os.close(target)
            raise ZeroDivisionError

    route = Route("echo", LOOPBACK, guest, Policy(half_close="forward"))
    async with running(route) as daemon:
        [listener] = daemon.supervisor.listeners.values()
        relay = listener._relay
        listener._relay = replace(relay, pump=Defective())  # type: ignore[arg-type]  # it is broken
        async with await daemon.connect() as client:
            assert await read_to_end(client) == b""
        await daemon.closed("echo", "error")
        listener._relay = relay
        assert await exchange(await daemon.connect(), b"x") == b"x"


# ---- reload ----


async def test_a_changed_target_is_for_new_connections_and_live_ones_stay(
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
        with trio.fail_after(5):
            while len(daemon.supervisor.stats()) > 1:
                await trio.lowlevel.checkpoint()
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
                with trio.fail_after(5):
                    while not daemon.supervisor._draining:
                        await trio.lowlevel.checkpoint()
                daemon.daemon.stop()
            with trio.fail_after(5):
                await daemon.ended.wait()
            assert daemon.drained is True
        assert files_of(at) == []


@pytest.mark.parametrize("ticks", [0, 1])
async def test_a_drain_during_a_reload_is_of_the_route_as_reloaded(
    guest: MuxEndpoint, tmp_path: Path, ticks: int
) -> None:
    at = [UnixEndpoint(str(tmp_path / name)) for name in ("gone", "before", "after")]
    async with running(Route("gone", at[0], guest), Route("moves", at[1], guest)) as daemon:
        moved = Route("moves", at[2], guest)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(daemon.reload, moved)
            with trio.fail_after(5):
                while daemon.daemon.config.routes != (moved,):
                    await trio.lowlevel.checkpoint()
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


async def test_a_reload_that_cannot_have_a_port_changes_nothing(
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


async def test_a_file_that_is_wrong_changes_nothing(guest: MuxEndpoint) -> None:
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


async def test_a_removed_metrics_socket_is_bound_again_and_serves(
    guest: MuxEndpoint, tmp_path: Path
) -> None:
    metrics = UnixEndpoint(str(tmp_path / "metrics"))
    async with running(Route("echo", LOOPBACK, guest), metrics=metrics) as daemon:
        Path(metrics.path).unlink()
        with trio.fail_after(10):
            while files_of([metrics]) == []:
                await trio.lowlevel.checkpoint()
        assert "vsockproxy_build_info" in await scrape(metrics)
        daemon.daemon.stop()
        await daemon.ended.wait()
    assert files_of([metrics]) == []


async def test_metrics_that_fail_while_they_are_served_end_no_route(
    guest: MuxEndpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails = trio.Event()

    async def serve(*_: object, task_status: trio.TaskStatus[None], **__: object) -> None:
        async with trio.open_nursery():
            task_status.started()
            await fails.wait()
            raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("vsockproxy.admin.observe.serve_metrics", serve)
    route = Route("echo", LOOPBACK, guest, Policy(half_close="forward"))
    metrics = UnixEndpoint(str(tmp_path / "metrics"))
    async with running(route, metrics=metrics) as daemon:
        fails.set()
        await trio.testing.wait_all_tasks_blocked()
        assert await exchange(await daemon.connect(), b"on") == b"on"
        monkeypatch.undo()
        await daemon.reload(route, metrics=metrics)
        assert "vsockproxy_build_info" in await scrape(metrics)


async def test_the_pumps_threads_answer(guest: MuxEndpoint, choice: PumpChoice) -> None:
    async with running(Route("echo", LOOPBACK, guest), choice=choice) as daemon:
        with trio.fail_after(5):
            await daemon.daemon.alive()


# ---- the end ----


async def test_stopping_lets_live_connections_finish_and_takes_no_new_ones(
    guest: MuxEndpoint, choice: PumpChoice
) -> None:
    route = Route("echo", LOOPBACK, guest, Policy(half_close="forward"))
    async with running(route, choice=choice) as daemon:
        client = await daemon.connect()
        await client.send_all(b"before")
        assert await client.receive_some() == b"before"
        address = daemon.address("echo")
        assert isinstance(address, TcpEndpoint)
        daemon.daemon.stop()
        with trio.fail_after(5):
            while await _accepts(address.port):
                await trio.lowlevel.checkpoint()
        assert not daemon.ended.is_set()
        assert await exchange(client, b"after") == b"after"
        await daemon.ended.wait()
        assert daemon.drained is True


async def test_a_connection_that_outlives_the_drain_is_reset(
    tmp_path: Path, choice: PumpChoice
) -> None:
    async with mux_server(tmp_path / "vm", {1: hold}) as server:
        target = MuxEndpoint(str(server.path), 1)
        route = Route("held", LOOPBACK, target, Policy(drain_timeout=0.1))
        async with running(route, choice=choice) as daemon:
            client = await daemon.connect("held")
            await client.send_all(b"x")
            await _until_live(daemon, "held")
            daemon.daemon.stop()
            assert await ends_by_reset(client)
            await daemon.ended.wait()
            assert daemon.drained is False
            assert daemon.stats("held").closed == {"drained": 1}


async def test_a_second_stop_ends_at_once(tmp_path: Path, choice: PumpChoice) -> None:
    async with mux_server(tmp_path / "vm", {1: hold}) as server:
        target = MuxEndpoint(str(server.path), 1)
        route = Route("held", LOOPBACK, target, Policy(drain_timeout=3600))
        async with running(route, choice=choice) as daemon:
            client = await daemon.connect("held")
            await client.send_all(b"x")
            await _until_live(daemon, "held")
            daemon.daemon.stop()
            daemon.daemon.stop()
            assert await ends_by_reset(client)
            await daemon.ended.wait()
            assert daemon.drained is False
            assert daemon.stats("held").closed == {"shutdown": 1}


async def test_a_stop_before_the_start_is_not_forgotten(guest: MuxEndpoint) -> None:
    daemon = Daemon(Config((Route("echo", LOOPBACK, guest),)))
    daemon.stop()
    with trio.fail_after(5):
        assert await daemon.run()


async def test_a_daemon_that_ran_leaves_no_descriptor_open(
    guest: MuxEndpoint, choice: PumpChoice
) -> None:
    with no_descriptor_left_over():
        route = Route("echo", LOOPBACK, guest, Policy(half_close="forward"))
        async with running(route, choice=choice) as daemon:
            for _ in range(20):
                assert await exchange(await daemon.connect(), b"x") == b"x"
            await daemon.closed("echo", "finished", 20)


# ---- what the tests do ----


@contextmanager
def no_descriptors_left() -> Iterator[None]:
    """Let nothing be opened in this process: the table ends at what is open now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    probe = os.dup(0)
    os.close(probe)
    resource.setrlimit(resource.RLIMIT_NOFILE, (probe, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def files_of(endpoints: list[UnixEndpoint]) -> list[str]:
    return [endpoint.path for endpoint in endpoints if Path(endpoint.path).exists()]


async def _until_live(daemon: Running, name: str) -> None:
    with trio.fail_after(5):
        while daemon.stats(name).upstream_bytes == 0:
            await trio.lowlevel.checkpoint()


async def _accepts(port: int) -> bool:
    try:
        client = await trio.open_tcp_stream("127.0.0.1", port)
    except OSError:
        return False
    await client.aclose()
    return True


def _only(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        [error] = error.exceptions
    return error
