"""One connection: its state, and its end by an operator."""

from __future__ import annotations

import errno
import os
import socket
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from tests.fake_services import hold
from tests.listen.running_route import Served, serving
from tests.sockets import ends_by_reset, read_to_end, tcp_pair
from tests.waiting import PATIENCE, until
from vsockproxy.address.endpoint import AF_VSOCK, UnixEndpoint, VsockEndpoint
from vsockproxy.config.settings import Direct, Policy, PumpChoice, PumpSettings, Route
from vsockproxy.connection import Connection
from vsockproxy.pump.choice import open_pump
from vsockproxy.pump.portable import PortablePump
from vsockproxy.pump.transfer import Accepted
from vsockproxy.relay.direct import DirectRelays

ROUTE = Route("route", UnixEndpoint("/run/front"), UnixEndpoint("/run/back"))


def only(route: Served) -> Connection:
    [connection] = route.stats.live
    return connection


def is_dialled(connection: Connection) -> bool:
    """Return whether a target is being dialled, by the connection's task or by the pump."""
    by_pump = connection.running is not None and connection.dial_seconds is None
    return connection.dialling is not None or by_pump


async def test_ending_a_connection_resets_both_sides_and_counts_the_reason(
    choice: PumpChoice,
) -> None:
    async with serving(Policy(), choice=choice) as route, await route.live() as client:
        connection = only(route)
        connection.end("killed")
        connection.end("killed")
        assert await ends_by_reset(client)
        await route.closed("killed")
        assert not route.stats.live
        connection.end("drained")
        assert dict(route.stats.closed) == {"killed": 1}


async def test_a_connection_killed_before_its_task_runs_ends_by_reset() -> None:
    async with serving(Policy()) as route:
        left, right = tcp_pair()
        connection = Connection(1, route.listener.route, left.family, left.getpeername())
        route.listener._gate.admit(right.fileno(), connection)
        connection.end("killed")
        with trio.fail_after(PATIENCE):
            await route.listener._relay.serve(right.detach(), connection)
        assert route.stats.closed == {"killed": 1}
        async with trio.SocketStream(trio.socket.from_stdlib_socket(left)) as client:
            assert await ends_by_reset(client)


async def test_ending_one_connection_leaves_the_others(choice: PumpChoice) -> None:
    async with (
        serving(Policy(), choice=choice) as route,
        await route.live() as first,
    ):
        connection = only(route)
        async with await route.live() as second:
            connection.end("killed")
            assert await ends_by_reset(first)
            await second.send_all(b"still here")
            await second.send_eof()
            assert await read_to_end(second) == b"still here"


@pytest.mark.parametrize("direct", ["auto", "off"])
async def test_killing_a_connection_ends_its_dial(tmp_path: Path, direct: Direct) -> None:
    full = tmp_path / "full"
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(str(full))
        listener.listen(0)
        first.connect(str(full))
        async with serving(Policy(connect_timeout=3600.0, direct=direct)) as route:
            route.listener.reconfigure(
                replace(route.listener.route, target=UnixEndpoint(str(full)))
            )
            async with route.connect() as client:
                await until(lambda: bool(route.stats.live) and is_dialled(only(route)))
                only(route).end("killed")
                assert await ends_by_reset(client)
                await route.closed("killed")


async def test_halves_shows_each_half_close(choice: PumpChoice) -> None:
    async with (
        serving(Policy(), service=hold, choice=choice) as route,
        route.connect() as client,
    ):
        await until(lambda: bool(route.stats.live) and only(route).running is not None)
        running = only(route).running
        assert running is not None
        assert not running.upstream_done()
        await client.send_eof()
        await until(running.upstream_done)
        assert not running.downstream_done()


async def test_idle_seconds_count_from_the_last_byte(
    choice: PumpChoice, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(Policy(), choice=choice) as route, await route.live() as client:
        connection = only(route)
        assert connection.running is not None
        last = connection.running.active()
        assert last >= int(connection.opened)
        monkeypatch.setattr("vsockproxy.connection.monotonic", lambda: last + 60)
        assert connection.idle_seconds == pytest.approx(60, abs=1)
        await client.send_eof()
        await read_to_end(client)


# ---- accepting ----


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_a_connection_has_its_clients_address(choice: PumpChoice, host: str) -> None:
    async with open_pump(PumpSettings(choice)) as pump:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family) as listener, socket.socket(family) as client:
            listener.bind((host, 0))
            listener.listen()
            client.connect(listener.getsockname())
            listener.setblocking(False)
            [(descriptor, address)] = pump.accept(listener.fileno(), 64)
            os.close(descriptor)
            connection = Connection(1, ROUTE, family, address)
            assert connection.address == client.getsockname()
            with pytest.raises(BlockingIOError):
                pump.accept(listener.fileno(), 64)


async def test_a_batch_accepts_no_more_clients_than_it_has_room_for(choice: PumpChoice) -> None:
    async with open_pump(PumpSettings(choice)) as pump:
        with socket.socket() as listener, ExitStack() as stack:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            listener.setblocking(False)
            for _ in range(5):
                stack.enter_context(socket.create_connection(listener.getsockname()))
            for room, number in ((2, 2), (64, 3)):
                clients = pump.accept(listener.fileno(), room)
                assert len(clients) == number
                for descriptor, _ in clients:
                    os.close(descriptor)


def test_a_vsock_sockaddr_becomes_cid_and_port() -> None:
    connection = Connection(1, ROUTE, AF_VSOCK, VsockEndpoint(7, 1025).to_sockaddr())
    assert connection.address == (7, 1025)
    assert connection.client == "vsock:7:1025"


async def test_accept_backs_off_when_every_accept_fails() -> None:
    class Firewalled(PortablePump):
        calls = 0

        def accept(self, listener: int, room: int) -> list[Accepted]:
            self.calls += 1
            if self.calls <= 100:
                raise PermissionError(errno.EPERM, "a security module does not like it")
            return super().accept(listener, room)

    pump = Firewalled("for this test")
    async with serving(Policy(), pump=pump) as route:
        assert await route.exchange(b"x") == b"x"
        assert route.events("accept_failed")
        assert route.events("accept_recovered")
        assert route.stats.accept_errors == 100


async def test_accept_backs_off_when_every_accept_of_a_direct_route_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    left = 100

    async def denied(*_: object) -> OSError | None:
        await trio.lowlevel.checkpoint()
        return PermissionError(errno.EPERM, "denied") if left else None

    class Firewalled(PortablePump):
        def accept(self, listener: int, room: int) -> list[Accepted]:
            nonlocal left
            if left:
                left -= 1
                raise PermissionError(errno.EPERM, "a security module does not like it")
            return super().accept(listener, room)

    monkeypatch.setattr(DirectRelays, "serve", denied)
    async with serving(Policy(), pump=Firewalled("for this test")) as route:
        assert await route.exchange(b"x") == b"x"
        assert route.events("accept_failed")


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.EMFILE, "LimitNOFILE="),
        (errno.ENFILE, "fs.file-max"),
        (errno.ENOMEM, "LimitAS="),
        (errno.EINVAL, "until it works again"),
    ],
)
async def test_a_failed_accept_names_the_remedy_of_its_error(number: int, remedy: str) -> None:
    class Failing(PortablePump):
        failures = 1

        def accept(self, listener: int, room: int) -> list[Accepted]:
            if self.failures:
                self.failures -= 1
                raise OSError(number, os.strerror(number))
            return super().accept(listener, room)

    async with serving(Policy(), pump=Failing("for this test")) as route:
        assert await route.exchange(b"x") == b"x"
        [line] = route.events("accept_failed")
        assert remedy in str(line["remedy"])
