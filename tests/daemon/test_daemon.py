"""The daemon in one process: real clients, real targets, from the first listener to the drain."""

from __future__ import annotations

import errno
import os
import socket
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from tests.daemon.running import (
    LOOPBACK,
    LOOPBACK_2,
    Running,
    accepts,
    exchange,
    only,
    running,
    until_live,
)
from tests.fake_services import answers_nothing, echo, hold, mux_server, no_descriptors_left, says
from tests.sockets import ends_by_reset, no_descriptor_left_over, read_to_end, stream
from tests.waiting import PATIENCE, until
from vsockproxy.address.endpoint import (
    FdEndpoint,
    ListenEndpoint,
    MuxEndpoint,
    TcpEndpoint,
    UnixEndpoint,
)
from vsockproxy.admin.socket_path import DefaultSocket
from vsockproxy.config.process import Limits
from vsockproxy.config.settings import Config, Policy, PumpChoice, Route
from vsockproxy.daemon.daemon import Daemon
from vsockproxy.daemon.http_servers import HttpServers
from vsockproxy.errors import ListenError, OrderError
from vsockproxy.listen.bind import ListeningSocket, listen

# ---- relaying ----


async def test_bytes_reach_a_guest_behind_a_vmm_socket_and_return(
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


async def test_a_unix_listener_serves_and_removes_its_file_at_the_end(
    guest: MuxEndpoint, tmp_path: Path
) -> None:
    path = tmp_path / "front.sock"
    route = Route("echo", UnixEndpoint(str(path)), guest, Policy(half_close="forward"))
    async with running(route) as daemon:
        assert await exchange(await daemon.connect(), b"hello") == b"hello"
    assert not path.exists()


async def test_a_client_that_comes_before_the_control_socket_fails_is_not_reset(
    guest: MuxEndpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[ListenEndpoint] = []

    def recorded(endpoint: ListenEndpoint, *arguments: Any, **more: Any) -> list[ListeningSocket]:
        opened.append(endpoint)
        return listen(endpoint, *arguments, **more)

    monkeypatch.setattr("vsockproxy.listen.sockets.listen", recorded)
    nowhere = DefaultSocket({"RUNTIME_DIRECTORY": f"{tmp_path}/absent"}, 0)
    metrics = UnixEndpoint(f"{tmp_path}/metrics")
    config = nowhere.resolve(Config((Route("echo", LOOPBACK, guest),), (metrics,)))
    daemon = Running(Daemon(config, control=nowhere))
    async with trio.open_nursery() as nursery:
        await nursery.start(daemon.run)
        nursery.cancel_scope.cancel()
    assert opened == [UnixEndpoint(f"{tmp_path}/absent/admin.sock"), metrics, LOOPBACK]


async def test_a_reload_during_the_start_waits_until_the_start_is_done(
    guest: MuxEndpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control socket is served before the other servers are."""
    order: list[str] = []
    start = HttpServers.start

    async def started(servers: HttpServers, config: Config, nursery: trio.Nursery) -> None:
        if not order:
            order.append("start")
            tasks.start_soon(reload)
            await trio.testing.wait_all_tasks_blocked()
            order.append("started")
        await start(servers, config, nursery)

    async def reload() -> None:
        await daemon.daemon.reload()
        order.append("reloaded")

    monkeypatch.setattr(HttpServers, "start", started)
    metrics = UnixEndpoint(f"{tmp_path}/metrics")
    config = Config((Route("echo", LOOPBACK, guest),), (metrics,))
    daemon = Running(Daemon(config, load=lambda: config))
    async with trio.open_nursery() as nursery, trio.open_nursery() as tasks:
        await nursery.start(daemon.run)
        await until(lambda: "reloaded" in order)
        nursery.cancel_scope.cancel()
    assert order == ["start", "started", "reloaded"]


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
        # A byte is counted a moment after it was sent.
        await until(lambda: (stats.upstream_bytes, stats.downstream_bytes) == (5, 5))
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
    missing = UnixEndpoint(str(tmp_path / "missing.sock"))
    async with running(Route("dead", LOOPBACK, missing)) as daemon:
        assert await daemon.resets("dead")
        await daemon.closed("dead", "dial_not_found")
        assert daemon.stats("dead").dial_failures == {"not_found": 1}


async def test_a_guest_that_never_answers_delays_no_other_client(
    tmp_path: Path, guest: MuxEndpoint
) -> None:
    async with mux_server(tmp_path / "silent", {1: echo}, answers_nothing) as silent:
        target = MuxEndpoint(str(silent.path), 1)
        routes = [
            Route("silent", LOOPBACK_2, target, Policy(connect_timeout=2.0)),
            Route("echo", LOOPBACK, guest, Policy(half_close="forward")),
        ]
        async with running(*routes) as daemon:
            waiting = [await daemon.connect("silent") for _ in range(20)]
            assert await exchange(await daemon.connect("echo"), b"x") == b"x"
            assert daemon.stats("silent").closed.total() == 0, "they still wait"
            for client in waiting:
                assert await ends_by_reset(client)
            await daemon.closed("silent", "dial_no_answer", 20)


async def test_a_port_in_use_names_the_route_and_leaves_nothing_open(
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
        error = only(info.value)
        assert isinstance(error, ListenError)
        assert (error.reason, error.errno) == ("in_use", errno.EADDRINUSE)
        assert error.__notes__ == ["route taken"]
    assert not (tmp_path / "front.sock").exists()


async def test_accepting_resumes_once_descriptors_are_free(guest: MuxEndpoint) -> None:
    route = Route("echo", LOOPBACK, guest, Policy(half_close="forward"))
    async with running(route) as daemon:
        address = daemon.address("echo")
        assert isinstance(address, TcpEndpoint)
        # The descriptors are counted with the first client: that there are fewer is news.
        assert await exchange(await daemon.connect(), b"first") == b"first"
        early = socket.socket()
        with no_descriptors_left():
            early.connect(("127.0.0.1", address.port))
            await until(lambda: daemon.stats("echo").accept_errors)
        assert await exchange(stream(early), b"held") == b"held"
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

    route = Route("echo", LOOPBACK, guest, Policy(half_close="forward", direct="off"))
    async with running(route) as daemon:
        [listener] = daemon.supervisor.listeners.values()
        relay = listener._relay
        listener._relay = replace(relay, pump=Defective())  # type: ignore[arg-type]  # it is broken
        async with await daemon.connect() as client:
            assert await read_to_end(client) == b""
        await daemon.closed("echo", "error")
        listener._relay = relay
        assert await exchange(await daemon.connect(), b"x") == b"x"


# ---- the end ----


async def test_a_stop_lets_live_connections_finish_and_refuses_new_ones(
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
            while await accepts(address.port):
                await trio.lowlevel.checkpoint()
        assert not daemon.ended.is_set()
        assert await exchange(client, b"after") == b"after"
        await daemon.ended.wait()
        assert daemon.drained is True


async def test_commands_to_a_draining_daemon_open_no_listener(guest: MuxEndpoint) -> None:
    policy = Policy(half_close="forward")
    routes = Route("echo", LOOPBACK, guest, policy), Route("idle", LOOPBACK_2, guest, policy)
    async with running(*routes) as daemon:
        client = await daemon.connect()
        await client.send_all(b"before")
        assert await client.receive_some() == b"before"
        echo_at, idle_at = daemon.address("echo"), daemon.address("idle")
        assert isinstance(echo_at, TcpEndpoint)
        assert isinstance(idle_at, TcpEndpoint)
        await daemon.daemon.drain("idle")
        released = next(iter(daemon.supervisor.listeners.values())).released
        daemon.daemon.stop()
        await released.wait()
        for order in (daemon.daemon.pause, daemon.daemon.drain, daemon.daemon.resume):
            for name in ("echo", "idle"):
                with pytest.raises(OrderError, match="the daemon is stopping"):
                    await order(name)
        assert not await accepts(echo_at.port)
        assert not await accepts(idle_at.port, "127.0.0.2")
        assert await exchange(client, b"after") == b"after"
        await daemon.ended.wait()
        assert daemon.drained is True


async def test_a_reload_of_a_daemon_that_has_ended_is_an_error(
    guest: MuxEndpoint,
) -> None:
    config = Config((Route("echo", LOOPBACK, guest),))
    daemon = Daemon(config, load=lambda: config)
    async with trio.open_nursery() as nursery:
        await nursery.start(daemon.run)
        daemon.stop()
    for reload in (daemon.reload, daemon.preview_reload):
        with pytest.raises(OrderError) as refused:
            await reload()
        assert str(refused.value) == "the daemon is stopping: it takes no other configuration"
        assert refused.value.remedy == "start the daemon again once it has ended"


async def test_a_connection_that_outlives_the_drain_is_reset(
    tmp_path: Path, choice: PumpChoice
) -> None:
    async with mux_server(tmp_path / "vm", {1: hold}) as server:
        target = MuxEndpoint(str(server.path), 1)
        route = Route("held", LOOPBACK, target, Policy(drain_timeout=0.1))
        async with running(route, choice=choice) as daemon:
            client = await daemon.connect("held")
            await client.send_all(b"x")
            await until_live(daemon, "held")
            daemon.daemon.stop()
            assert await ends_by_reset(client)
            await daemon.ended.wait()
            assert daemon.drained is False
            assert daemon.stats("held").closed == {"drained": 1}


async def test_a_second_stop_resets_live_connections_at_once(
    tmp_path: Path, choice: PumpChoice
) -> None:
    async with mux_server(tmp_path / "vm", {1: hold}) as server:
        target = MuxEndpoint(str(server.path), 1)
        route = Route("held", LOOPBACK, target, Policy(drain_timeout=3600))
        async with running(route, choice=choice) as daemon:
            client = await daemon.connect("held")
            await client.send_all(b"x")
            await until_live(daemon, "held")
            daemon.daemon.stop()
            daemon.daemon.stop()
            assert await ends_by_reset(client)
            await daemon.ended.wait()
            assert daemon.drained is False
            assert daemon.stats("held").closed == {"shutdown": 1}


async def test_a_second_stop_does_not_wait_for_a_client_that_takes_nothing(
    tmp_path: Path, choice: PumpChoice
) -> None:
    async with mux_server(tmp_path / "vm", {1: says(bytes(200_000))}) as server:
        target = MuxEndpoint(str(server.path), 1)
        policy = Policy(drain_timeout=3600, linger_timeout=3600)
        async with running(Route("slow", LOOPBACK, target, policy), choice=choice) as daemon:
            client = await daemon.connect("slow")
            await until(lambda: daemon.stats("slow").live)
            [connection] = daemon.stats("slow").live
            await until(lambda: connection.halves[1])  # its socket has the whole answer
            daemon.daemon.stop()
            daemon.daemon.stop()
            with trio.fail_after(PATIENCE):
                await daemon.ended.wait()
            await client.aclose()


def delayed(guest: MuxEndpoint, seconds: float) -> Running:
    route = Route("echo", LOOPBACK, guest, Policy(half_close="forward"))
    return Running(Daemon(Config((route,), limits=Limits(drain_delay=seconds))))


async def test_a_stop_with_drain_delay_accepts_clients_and_is_not_ready_until_it_has_passed(
    guest: MuxEndpoint, mock_clock: MockClock
) -> None:
    daemon = delayed(guest, 3600.0)
    async with trio.open_nursery() as nursery:
        await nursery.start(daemon.run)
        assert daemon.daemon.not_ready() == []
        daemon.daemon.stop()
        [reason] = daemon.daemon.not_ready()
        assert "drain_delay" in reason
        assert daemon.daemon.is_stopping
        assert await exchange(await daemon.connect(), b"late") == b"late"
        await daemon.closed("echo", "finished")
        mock_clock.jump(3600.0)
        await daemon.ended.wait()
        assert daemon.drained is True


async def test_a_second_stop_ends_drain_delay_and_every_connection(guest: MuxEndpoint) -> None:
    daemon = delayed(guest, 3600.0)
    async with trio.open_nursery() as nursery:
        await nursery.start(daemon.run)
        client = await daemon.connect()
        await client.send_all(b"x")
        await until_live(daemon, "echo")
        daemon.daemon.stop()
        daemon.daemon.stop()
        assert await ends_by_reset(client)
        with trio.fail_after(5):
            await daemon.ended.wait()
        assert daemon.drained is False


async def test_a_stop_before_the_start_ends_the_daemon(guest: MuxEndpoint) -> None:
    daemon = Daemon(Config((Route("echo", LOOPBACK, guest),), limits=Limits(drain_delay=3600.0)))
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
