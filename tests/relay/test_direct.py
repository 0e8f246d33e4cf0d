"""Direct routes: what an operator sees of them is what is seen of every other route."""

from __future__ import annotations

import itertools
import socket
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.fake_services import (
    Answer,
    answers,
    answers_nothing,
    dead_unix_socket,
    echo,
    full_unix_listener,
    mux_server,
    says,
    unused_tcp_port,
)
from tests.listen.running_route import Served, serving
from tests.pump.relayed import publish
from tests.sockets import (
    CID_LOCAL,
    ends_by_reset,
    no_descriptor_left_over,
    read_to_end,
)
from tests.waiting import PATIENCE, until
from vsockproxy.address.endpoint import (
    MuxEndpoint,
    Target,
    TcpEndpoint,
    UnixEndpoint,
    VsockEndpoint,
)
from vsockproxy.config.settings import Direct, Policy, PumpSettings
from vsockproxy.pump.choice import open_pump
from vsockproxy.pump.transfer import Meter
from vsockproxy.relay.direct_clients import DirectClients

pytestmark = pytest.mark.native

MODES: tuple[Direct, Direct] = ("auto", "off")
FORWARD = Policy(half_close="forward")
SIZE = 1000

End = tuple[str, int]  # how a client's stream ended, and the bytes that it had by then


def exchange(address: tuple[str, int], data: bytes) -> End:
    """Connect, send ``data`` and a FIN, and read to the end."""
    received = b""
    with socket.socket() as client:
        client.settimeout(20)
        try:
            client.connect(address)
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            while piece := client.recv(65536):
                received += piece
        except TimeoutError:
            return "timeout", len(received)
        except OSError:  # the call says how far the client had come: ECONNRESET, EPIPE, ENOTCONN
            return "reset", len(received)
    return "eof", len(received)


def address_of(route: Served) -> tuple[str, int]:
    endpoint = route.listener.sockets[0].endpoint
    assert isinstance(endpoint, TcpEndpoint)
    assert endpoint.host is not None
    return endpoint.host, endpoint.port


async def many(route: Served, number: int) -> Counter[End]:
    """Return how many clients ended in each way."""
    ends: Counter[End] = Counter()
    limiter = trio.CapacityLimiter(8)

    async def one() -> None:
        end = await trio.to_thread.run_sync(
            exchange, address_of(route), bytes(SIZE), limiter=limiter
        )
        ends[end] += 1

    async with trio.open_nursery() as nursery:
        for _ in range(number):
            nursery.start_soon(one)
    return ends


def is_direct(route: Served) -> bool:
    return route.listener.not_direct() is None


# ---- counters ----


@pytest.mark.parametrize("access_log", [True, False])
@pytest.mark.parametrize("threads", [1, 3])
async def test_with_a_fifth_of_the_dials_failing_every_counter_is_exact(
    tmp_path: Path, access_log: bool, threads: int
) -> None:
    number, most = 500, 6
    turn = itertools.count()

    async def answer(stream: trio.SocketStream, port: int) -> bool:
        if next(turn) % 5 == 0:  # as a VMM does whose guest does not listen
            return False
        await stream.send_all(b"OK 1073741824\n")
        return True

    policy = replace(FORWARD, max_connections=most, access_log=access_log, connect_timeout=20.0)
    guest = MuxEndpoint(str(tmp_path / "guest.sock"), 80)
    async with (
        open_pump(PumpSettings("native", threads=threads)) as pump,
        mux_server(Path(guest.path), {80: echo}, answer),
        serving(policy, dial_to=guest, pump=pump) as route,
    ):
        assert is_direct(route)
        ends = await many(route, number)
        await pump.alive()
        failed = number // 5
        stats = route.stats
        assert ends["eof", SIZE] == number - failed
        assert sum(count for (how, _), count in ends.items() if how == "reset") == failed
        assert stats.connections == number
        assert not stats.live
        assert stats.closed == {"finished": number - failed, "dial_refused": failed}
        assert stats.dial_failures == {"refused": failed}
        assert stats.upstream_bytes == stats.downstream_bytes == SIZE * (number - failed)
        assert sum(stats.dial_seconds.counts) == number - failed
        assert sum(stats.connection_seconds.counts) == number
        assert 0 < stats.dial_seconds.sum < stats.connection_seconds.sum
        lines = Counter(event["reason"] for event in route.events("connection_closed"))
        assert lines == Counter(finished=number - failed if access_log else 0)
        [told] = route.events("dial_failed")  # one in ten seconds
        assert told["reason"] == "refused"
        numbers = [event["number"] for event in route.events("connection_closed")]
        assert len(set(map(str, numbers))) == len(numbers)


async def test_no_more_clients_than_max_connections_reach_the_target_at_a_time(
    tmp_path: Path,
) -> None:
    most, number = 5, 200
    open_now = peak = 0

    async def service(stream: trio.SocketStream) -> None:
        nonlocal open_now, peak
        open_now += 1
        peak = max(peak, open_now)
        await read_to_end(stream)
        # Before the answer: a client that has it may be followed by the next one at once.
        open_now -= 1
        await stream.send_all(bytes(SIZE))

    guest = MuxEndpoint(str(tmp_path / "guest.sock"), 80)
    policy = replace(FORWARD, max_connections=most)
    async with (
        open_pump(PumpSettings("native", threads=3)) as pump,
        mux_server(Path(guest.path), {80: service}),
        serving(policy, dial_to=guest, pump=pump) as route,
    ):
        assert await many(route, number) == {("eof", SIZE): number}
        assert 1 < peak <= most


async def test_a_limit_that_is_reached_during_a_look_for_life_is_acted_on(tmp_path: Path) -> None:
    guest = MuxEndpoint(str(tmp_path / "guest.sock"), 80)
    policy = replace(FORWARD, max_connections=2)
    async with (
        open_pump(PumpSettings("native")) as pump,
        mux_server(Path(guest.path), {80: echo}),
        serving(policy, dial_to=guest, pump=pump) as route,
    ):
        assert is_direct(route)
        await trio.testing.wait_all_tasks_blocked()
        first, second = route.connect(), route.connect()  # the pump accepts one of them
        while not route.stats.connections:  # in one turn of the event loop, as `alive` may
            publish(pump)
            pump._reap()  # type: ignore[attr-defined]
        with trio.fail_after(PATIENCE):
            async with first, second:
                for client in (first, second):
                    await client.send_all(b"x")
                    assert await client.receive_some() == b"x"


async def test_a_connection_that_cannot_be_counted_is_ended_and_none_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_once(*_: object) -> Meter:
        monkeypatch.undo()
        raise MemoryError

    guest = MuxEndpoint(str(tmp_path / "guest.sock"), 80)
    with trio.fail_after(PATIENCE):
        async with (
            open_pump(PumpSettings("native")) as pump,
            mux_server(Path(guest.path), {80: echo}),
            serving(FORWARD, dial_to=guest, pump=pump) as route,
        ):
            assert is_direct(route)
            monkeypatch.setattr(DirectClients, "opened", fail_once)
            assert await ends_by_reset(route.connect())
            assert await route.exchange(b"x") == b"x"
            route.listener.stop_accepting()


# ---- a failed dial ----


def missing(path: Path) -> Target:
    return UnixEndpoint(str(path))


def dead(path: Path) -> Target:
    dead_unix_socket(path)
    return UnixEndpoint(str(path))


def file(path: Path) -> Target:
    path.write_text("")
    return UnixEndpoint(str(path))


def no_vmm(path: Path) -> Target:
    return MuxEndpoint(str(path), 80)


def unused(path: Path) -> Target:
    return TcpEndpoint("127.0.0.1", unused_tcp_port())


def unused_vsock(path: Path) -> Target:
    return VsockEndpoint(CID_LOCAL, 4_000_000_000)


def without_transport(path: Path) -> Target:
    return VsockEndpoint(4_000_000, 80)


@pytest.mark.parametrize(
    "make",
    [
        missing,
        dead,
        file,
        no_vmm,
        unused,
        pytest.param(unused_vsock, marks=pytest.mark.vsock),
        pytest.param(without_transport, marks=pytest.mark.vsock),
    ],
    ids=lambda make: make.__name__,
)
async def test_a_failed_dial_is_reported_as_that_of_a_route_that_is_not_direct(
    tmp_path: Path, make: Callable[[Path], Target]
) -> None:
    target = make(tmp_path / "guest.sock")
    with no_descriptor_left_over():
        direct, other = [await failure(mode, target) for mode in MODES]
    assert direct == other


@pytest.mark.parametrize(
    "answer",
    [
        answers(b"NO\n"),
        answers(b"OK \n"),
        answers(b"OK 12", b"34 \r\n"),
        answers(b"x" * 100),
        answers(b"OK 99999999999999999999999999\n"),
        answers_nothing,
    ],
    ids=["no", "no number", "in pieces", "long", "long number", "nothing"],
)
async def test_a_vmms_answer_is_judged_as_by_a_route_that_is_not_direct(
    tmp_path: Path, answer: Answer
) -> None:
    target = MuxEndpoint(str(tmp_path / "guest.sock"), 80)
    async with mux_server(Path(target.path), {80: says(b"hello")}, answer):
        direct, other = [await failure(mode, target) for mode in MODES]
    assert direct == other


async def test_a_full_backlog_is_reported_as_by_a_route_that_is_not_direct(tmp_path: Path) -> None:
    target = UnixEndpoint(str(tmp_path / "guest.sock"))
    with full_unix_listener(Path(target.path)):
        direct, other = [await failure(mode, target) for mode in MODES]
    assert direct == other
    assert "dial_busy" in str(direct)


async def failure(mode: Direct, target: Target) -> object:
    """Return all that a client and an operator see of one client, without numbers and times."""
    policy = replace(FORWARD, direct=mode, connect_timeout=0.3, handshake_timeout=0.1)
    async with serving(policy, dial_to=target) as route:
        assert is_direct(route) == (mode == "auto")
        end = await trio.to_thread.run_sync(exchange, address_of(route), bytes(SIZE))
        await until(lambda: route.stats.closed)
        [state] = route.stats.targets
        error = state.last_error
        lines = [
            (event, {key: value for key, value in fields.items() if key not in VARYING})
            for event, fields in ((str(call.args), call.kwargs) for call in route.log.calls)
        ]
        return (
            end,
            route.stats.closed,
            route.stats.dial_failures,
            sum(route.stats.dial_seconds.counts),
            state.name,
            error and (error.reason, error.summary, error.remedy, error.errno),
            sorted(lines, key=repr),
        )


VARYING = frozenset({"client", "seconds", "dial_seconds"})


# ---- a VMM's OK ----


@pytest.mark.parametrize("mode", MODES)
async def test_bytes_behind_a_vmms_ok_reach_the_client(tmp_path: Path, mode: Direct) -> None:
    async def answer(stream: trio.SocketStream, port: int) -> bool:
        await stream.send_all(b"OK 1073741824\nbanner ")
        return True

    target = MuxEndpoint(str(tmp_path / "guest.sock"), 80)
    policy = replace(FORWARD, direct=mode)
    async with (
        mux_server(Path(target.path), {80: says(b"and more")}, answer),
        serving(policy, dial_to=target) as route,
        route.connect() as client,
    ):
        assert await read_to_end(client) == b"banner and more"


# ---- a reload ----


async def test_reloads_between_direct_and_not_direct_under_load_lose_no_client(
    tmp_path: Path,
) -> None:
    number = 600
    targets = [MuxEndpoint(str(tmp_path / f"{name}.sock"), 80) for name in "ab"]
    async with (
        open_pump(PumpSettings("native", threads=2)) as pump,
        mux_server(Path(targets[0].path), {80: echo}),
        mux_server(Path(targets[1].path), {80: echo}),
        serving(FORWARD, dial_to=targets[0], pump=pump) as route,
    ):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reload_repeatedly, route, targets)
            ends = await many(route, number)
            nursery.cancel_scope.cancel()
        assert ends == {("eof", SIZE): number}
        await pump.alive()
        await route.closed("finished", number)
        assert route.stats.connections == number
        assert route.stats.closed == {"finished": number}
        assert route.stats.upstream_bytes == route.stats.downstream_bytes == SIZE * number


async def reload_repeatedly(route: Served, targets: list[MuxEndpoint]) -> None:
    """Reload after every few clients: to and from direct, with another target and limit."""
    for turn in itertools.count():
        policy = replace(FORWARD, direct=MODES[turn % 2], max_connections=20 + turn % 3)
        target = targets[turn // 2 % 2]
        route.listener.reconfigure(replace(route.listener.route, target=target, policy=policy))
        enough = route.stats.connections + 5
        while route.stats.connections < enough:
            await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("to", MODES)
async def test_a_live_connection_goes_on_over_a_reload_between_direct_and_not(
    to: Direct,
) -> None:
    other: Direct = MODES[to == "auto"]
    async with serving(replace(FORWARD, direct=other)) as route:
        client = await route.live()
        route.reconfigure(replace(FORWARD, direct=to))
        second = await route.live()
        for each in (client, second):
            await each.send_all(b"x")
            assert await each.receive_some() == b"x"
            await each.send_eof()
            assert await read_to_end(each) == b""
            await each.aclose()
        await route.closed("finished", 2)
        assert is_direct(route) == (to == "auto")
