"""Operators' acts that close or replace a listening socket: no client in its backlog is lost."""

from __future__ import annotations

import contextlib
import errno
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.daemon.running import LOOPBACK_2, Running, files_of, running
from tests.fake_services import echo, mux_server, needs_ipv6, unused_tcp_port
from tests.sockets import no_descriptor_left_over
from tests.waiting import until
from vsockproxy.address.endpoint import ListenEndpoint, MuxEndpoint, TcpEndpoint, UnixEndpoint
from vsockproxy.config.settings import Policy, PumpChoice, Route
from vsockproxy.listen.intake import stop_intake
from vsockproxy.systemd import store_name

MANY = 200
WORKERS = 8
CLIENTS = 120  # of each worker
TIMEOUT = 20.0

only_on_linux = pytest.mark.skipif(
    sys.platform != "linux", reason="listeners overlap by SO_REUSEPORT on Linux only"
)


@pytest.fixture
async def route(tmp_path: Path) -> AsyncIterator[Route]:
    """A route to a guest that echoes."""
    async with mux_server(tmp_path / "guest.sock", {80: echo}) as server:
        target = MuxEndpoint(str(server.path), 80)
        yield Route("echo", LOOPBACK_2, target, Policy(access_log=False, half_close="forward"))


def at(route: Route, listen: ListenEndpoint) -> Route:
    return replace(route, listen=listen)


# ---- clients that connect all the time ----


def connect_in_a_loop(family: int, address: Any, failures: Counter[str]) -> None:
    """Connect client after client; note what keeps one from its echo."""
    for _ in range(CLIENTS):
        step = "connect"
        try:
            with socket.socket(family) as client:
                client.settimeout(TIMEOUT)
                client.connect(address)
                step = "echo"
                client.sendall(b"x")
                assert client.recv(1) == b"x"
        except (OSError, AssertionError) as error:
            failures[f"{step}: {error!r}"] += 1


def accepted(daemon: Running) -> int:
    """Return how many clients the present routes have accepted."""
    return sum(stats.connections for stats in daemon.supervisor.stats())


async def reload_under_load(
    daemon: Running, turns: list[list[Route]], family: int, address: Any
) -> tuple[Counter[str], int]:
    """Reload in turn while clients connect; return their failures and the number of reloads."""
    failures: Counter[str] = Counter()
    reloads = 0
    over = trio.Event()

    async def load() -> None:
        async with trio.open_nursery() as workers:
            for _ in range(WORKERS):
                workers.start_soon(
                    trio.to_thread.run_sync, connect_in_a_loop, family, address, failures
                )
        over.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(load)
        for routes in cycle(turns):
            await daemon.reload(*routes)
            reloads += 1
            served = accepted(daemon)
            while not over.is_set() and accepted(daemon) == served:
                await trio.lowlevel.checkpoint()
            if over.is_set():
                break
    return failures, reloads


@only_on_linux
@pytest.mark.parametrize(
    ("narrow", "wide"),
    [
        ("127.0.0.1", "0.0.0.0"),
        ("127.0.0.1", None),
        pytest.param("::1", "::", marks=needs_ipv6),
        pytest.param("::1", None, marks=needs_ipv6),
    ],
)
async def test_no_client_is_lost_while_reloads_widen_and_narrow_a_listener(
    route: Route, narrow: str, wide: str | None, choice: PumpChoice
) -> None:
    port = unused_tcp_port()
    turns = [[at(route, TcpEndpoint(host, port))] for host in (wide, narrow)]
    family = socket.AF_INET6 if ":" in narrow else socket.AF_INET
    async with running(*turns[1], choice=choice) as daemon:
        failures, reloads = await reload_under_load(daemon, turns, family, (narrow, port))
    assert failures == {}
    assert reloads > 2


async def test_no_client_is_lost_while_reloads_rename_a_route(
    route: Route, choice: PumpChoice
) -> None:
    port = unused_tcp_port()
    here = at(route, TcpEndpoint("127.0.0.1", port))
    turns = [[replace(here, name="renamed")], [here]]
    async with running(here, choice=choice) as daemon:
        failures, reloads = await reload_under_load(
            daemon, turns, socket.AF_INET, ("127.0.0.1", port)
        )
    assert failures == {}
    assert reloads > 2


async def test_no_client_is_lost_while_reloads_write_a_socket_file_in_another_way(
    route: Route, tmp_path: Path, choice: PumpChoice
) -> None:
    file = tmp_path / "v.sock_52"
    turns = [
        [at(route, listen)]
        for listen in (MuxEndpoint(str(tmp_path / "v.sock"), 52), UnixEndpoint(str(file)))
    ]
    async with running(*turns[1], choice=choice) as daemon:
        inode = file.stat().st_ino
        failures, reloads = await reload_under_load(daemon, turns, socket.AF_UNIX, str(file))
        assert file.stat().st_ino == inode
    assert failures == {}
    assert reloads > 2
    assert not file.exists()


# ---- clients that are queued when the socket is closed ----


async def remove(daemon: Running, route: Route) -> None:
    await daemon.reload(replace(route, name="other", listen=LOOPBACK_2))


async def move(daemon: Running, route: Route) -> None:
    await daemon.reload(at(route, LOOPBACK_2))


async def drain(daemon: Running, route: Route) -> None:
    await daemon.daemon.drain(route.name)


async def stop(daemon: Running, _: Route) -> None:
    daemon.daemon.stop()


async def remove_the_file(_: Running, route: Route) -> None:
    assert isinstance(route.listen, UnixEndpoint)
    await trio.Path(route.listen.path).unlink()
    await until(lambda: files_of([route.listen]))  # type: ignore[list-item] # see above


def queue_clients(stack: ExitStack, endpoint: ListenEndpoint) -> list[socket.socket]:
    """Connect many clients, each with a byte to be echoed."""
    clients = []
    for _ in range(MANY):
        if isinstance(endpoint, UnixEndpoint):
            client = socket.socket(socket.AF_UNIX)
            client.connect(endpoint.path)
        else:
            assert isinstance(endpoint, TcpEndpoint)
            client = socket.create_connection((endpoint.host, endpoint.port))
        client.sendall(b"x")
        client.setblocking(False)
        clients.append(stack.enter_context(client))
    return clients


async def hang_up_after_the_echo(client: socket.socket) -> None:
    with client:
        assert await trio.socket.from_stdlib_socket(client).recv(10) == b"x"


@dataclass(frozen=True)
class Act:
    """What an operator does to a route, and the kind of its listener."""

    do: Callable[[Running, Route], Awaitable[object]]
    kind: str

    def __str__(self) -> str:
        return f"{self.do.__name__}-{self.kind}"

    def listen(self, folder: Path) -> ListenEndpoint:
        if self.kind == "unix":
            return UnixEndpoint(str(folder / "front.sock"))
        return TcpEndpoint("127.0.0.1", unused_tcp_port())


ACTS = [Act(do, kind) for do in (remove, move, drain, stop) for kind in ("tcp", "unix")]


@pytest.mark.parametrize("max_connections", [None, 3])
@pytest.mark.parametrize("act", [*ACTS, Act(remove_the_file, "unix")], ids=str)
async def test_queued_clients_are_served_by_the_old_route(
    route: Route, tmp_path: Path, act: Act, max_connections: int | None, choice: PumpChoice
) -> None:
    policy = replace(route.policy, max_connections=max_connections)
    here = replace(route, listen=act.listen(tmp_path), policy=policy)
    with no_descriptor_left_over(), ExitStack() as stack:
        async with running(here, choice=choice) as daemon:
            await daemon.daemon.pause("echo")
            clients = queue_clients(stack, here.listen)
            stats = daemon.stats("echo")
            assert not stats.connections
            peak = 0

            async def serve(client: socket.socket) -> None:
                nonlocal peak
                await hang_up_after_the_echo(client)
                peak = max(peak, len(stats.live))

            with trio.fail_after(TIMEOUT):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(act.do, daemon, here)
                    for client in clients:
                        nursery.start_soon(serve, client)
            await until(lambda: not stats.live)
            assert stats.connections == MANY
            assert peak <= (max_connections or MANY)


async def test_clients_that_are_queued_at_a_second_stop_are_reset(route: Route) -> None:
    """They wait for room under the limit when the daemon ends."""
    listen = TcpEndpoint("127.0.0.1", unused_tcp_port())
    here = replace(at(route, listen), policy=replace(route.policy, max_connections=1))
    with no_descriptor_left_over(), ExitStack() as stack:
        async with running(here) as daemon:
            held = stack.enter_context(socket.create_connection(("127.0.0.1", listen.port)))
            await until(lambda: daemon.stats("echo").live)
            clients = queue_clients(stack, listen)
            daemon.daemon.stop()
            await until(lambda: daemon.supervisor._draining or daemon.supervisor.listeners)
            daemon.daemon.stop()
            with trio.fail_after(TIMEOUT):
                await daemon.ended.wait()
            assert daemon.drained is False
        for client in [held, *clients]:
            client.setblocking(True)
            with contextlib.suppress(ConnectionResetError):
                assert client.recv(10) in (b"", b"x")


async def test_queued_clients_without_a_descriptor_are_reset_and_the_route_ends(
    route: Route, monkeypatch: pytest.MonkeyPatch
) -> None:
    listen = TcpEndpoint("127.0.0.1", unused_tcp_port())
    async with running(at(route, listen)) as daemon:
        await daemon.daemon.pause("echo")
        with ExitStack() as stack:
            clients = queue_clients(stack, listen)
            monkeypatch.setattr(
                daemon.supervisor.admission, "connections_free", lambda: 3
            )  # asked twice
            await remove(daemon, at(route, listen))
            for client in clients[:6]:
                with trio.fail_after(TIMEOUT):
                    await hang_up_after_the_echo(client)
            for client in clients[6:]:
                client.setblocking(True)
                with pytest.raises(ConnectionResetError):
                    client.recv(10)


@only_on_linux
@pytest.mark.parametrize(("before", "now"), [("127.0.0.1", "0.0.0.0"), ("0.0.0.0", "127.0.0.1")])
async def test_a_restart_with_an_overlapping_address_finds_the_stored_socket(
    route: Route, before: str, now: str
) -> None:
    """The clients in the store's backlog are served where the new address has them all."""
    port = unused_tcp_port()
    stored = socket.create_server((before, port))
    name = store_name(TcpEndpoint(before, port), 0)
    with no_descriptor_left_over(), ExitStack() as stack:
        queued = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        inherited: Any = {name: stored.dup()}  # none of the parameters has such a name
        async with running(at(route, TcpEndpoint(now, port)), **inherited) as daemon:
            async with await daemon.connect() as client:
                await client.send_all(b"x")
                assert await client.receive_some() == b"x"
            if now == "0.0.0.0":
                queued.sendall(b"x")
                queued.setblocking(False)
                await hang_up_after_the_echo(queued)
    stored.close()


# ---- the last instant ----


@only_on_linux
@pytest.mark.parametrize(
    "family", [socket.AF_INET, pytest.param(socket.AF_INET6, marks=needs_ipv6)]
)
def test_a_tcp_socket_without_intake_keeps_its_backlog_and_ignores_a_syn(family: int) -> None:
    host = "127.0.0.1" if family == socket.AF_INET else "::1"
    with socket.create_server((host, 0), family=family) as listener:
        address = listener.getsockname()[:2]
        with socket.create_connection(address) as queued, socket.socket(family) as late:
            stop_intake(listener)
            late.setblocking(False)
            assert late.connect_ex(address) == errno.EINPROGRESS
            accepted, _ = listener.accept()
            with accepted:
                queued.sendall(b"x")
                assert accepted.recv(1) == b"x"
            listener.setblocking(False)
            with pytest.raises(BlockingIOError):
                listener.accept()


def test_a_unix_socket_without_intake_keeps_its_backlog_and_refuses(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as queued:
        listener.bind(path)
        listener.listen()
        queued.connect(path)
        stop_intake(listener)
        with socket.socket(socket.AF_UNIX) as late:
            assert late.connect_ex(path) == errno.ECONNREFUSED
        listener.accept()[0].close()
        with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is what matters
            listener.accept()
        assert caught.value.errno == errno.EINVAL
