"""How a route reaches its targets: waiting for a guest, several targets, what is known of them."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.dial.fake_vmm import Vmm
from tests.fake_services import (
    Service,
    answers,
    answers_nothing,
    answers_ok,
    echo,
    mux_server,
    says,
    unix_listener,
    unused_tcp_port,
)
from tests.listen.running_route import PATIENCE, Served, serving, unix_at
from tests.sockets import read_to_end, reset, stream
from vsockproxy.address.endpoint import (
    CID_ANY,
    CID_LOCAL,
    PORT_ANY,
    GuestEndpoint,
    MuxEndpoint,
    TcpEndpoint,
    UnixEndpoint,
    VsockEndpoint,
)
from vsockproxy.config.guest import Guest, MuxGlob
from vsockproxy.config.settings import Config, Policy, Route
from vsockproxy.daemon.daemon import Daemon
from vsockproxy.dial import mux
from vsockproxy.dial.dial import dial
from vsockproxy.guests.directory import Guests

PLAIN = Policy(half_close="forward")  # this VMM honours it
WAIT = replace(PLAIN, wait_for_guest=PATIENCE, handshake_timeout=0.1)


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(PATIENCE):
        while not condition():
            await trio.lowlevel.checkpoint()


def guest_at(folder: Path, name: str = "guest") -> MuxEndpoint:
    return MuxEndpoint(str(folder / name), 80)


def state_of(route: Served, number: int = 0) -> str:
    return route.stats.targets[number].name


async def is_reset(client: trio.SocketStream) -> bool:
    try:
        await read_to_end(client)
    except trio.BrokenResourceError:
        return True
    return False


async def question(client: trio.SocketStream) -> bytes:
    """What comes back for a request, after which the client has ended its side."""
    await client.send_all(b"request")
    await client.send_eof()
    return await read_to_end(client)


# --- waiting ------------------------------------------------------------------------------


async def test_a_client_that_comes_before_its_vm_is_served_once_it_runs(tmp_path: Path) -> None:
    guest = guest_at(tmp_path)
    async with serving(WAIT, dial_to=guest) as route, route.connect() as client:
        await client.send_all(b"early")
        await until(lambda: route.stats.held == 1 and state_of(route) == "down")
        async with mux_server(Path(guest.path), {80: echo}):
            await client.send_eof()
            assert await read_to_end(client) == b"early"
        await route.closed("finished")
        assert dict(route.stats.held_results) == {"served": 1}
        assert route.stats.held == 0
        assert not route.stats.dial_failures
        [down] = route.events("target_down")
        assert (down["target"], down["reason"]) == (str(guest), "not_found")
        [up] = route.events("target_up")
        assert (up["was"], up["route"]) == ("down", "route")
        [line] = route.events("connection_closed")
        assert float(str(line["held_seconds"])) > 0
        assert line["vmm_port"]


async def test_a_client_waits_for_a_service_that_does_not_listen_yet(tmp_path: Path) -> None:
    guest = guest_at(tmp_path)
    services: dict[int, Service] = {}
    async with (
        mux_server(Path(guest.path), services),
        serving(WAIT, dial_to=guest) as route,
        route.connect() as client,
    ):
        await until(lambda: state_of(route) == "refused")
        services[80] = says(b"here I am")
        assert await read_to_end(client) == b"here I am"


async def test_a_client_waits_for_a_guest_that_does_not_answer_yet(tmp_path: Path) -> None:
    guest = guest_at(tmp_path)
    asked = 0

    async def boots(stream: trio.SocketStream, port: int) -> bool:
        nonlocal asked
        asked += 1
        answer = answers_ok if asked > 2 else answers_nothing
        return await answer(stream, port)

    async with (
        mux_server(Path(guest.path), {80: says(b"up")}, boots),
        serving(WAIT, dial_to=guest) as route,
        route.connect() as client,
    ):
        assert await read_to_end(client) == b"up"
        assert asked == 3


@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_targets_of_every_kind_are_waited_for(tmp_path: Path, kind: str) -> None:
    port = unused_tcp_port()
    unix = UnixEndpoint(str(tmp_path / "service"))
    target = TcpEndpoint("127.0.0.1", port) if kind == "tcp" else unix
    async with serving(WAIT, dial_to=target) as route, route.connect() as client:
        await until(lambda: route.stats.held == 1)
        with unix_listener(Path(unix.path)) as for_unix:
            sock = socket.create_server(("127.0.0.1", port)) if kind == "tcp" else for_unix
            sock.setblocking(False)
            listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
            async with listener, trio.open_nursery() as nursery:
                nursery.start_soon(trio.serve_listeners, says(b"up"), [listener])
                assert await read_to_end(client) == b"up"
                nursery.cancel_scope.cancel()


@pytest.mark.vsock
async def test_a_client_over_vsock_waits_and_one_that_leaves_does_not(tmp_path: Path) -> None:
    service = tmp_path / "service"
    anywhere = VsockEndpoint(CID_ANY, PORT_ANY)
    async with serving(WAIT, listen_at=anywhere, dial_to=UnixEndpoint(str(service))) as route:
        at = route.listener.sockets[0].endpoint
        assert isinstance(at, VsockEndpoint)
        patient, leaver = [await dial(VsockEndpoint(CID_LOCAL, at.port), 5) for _ in range(2)]
        with patient:
            patient.send(b"request")
            patient.shutdown(socket.SHUT_WR)
            leaver.send(b"request")
            await until(lambda: route.stats.held == 2)
            leaver.close()
            await route.closed("dial_client_left")
            assert route.stats.held == 1
            with unix_listener(service) as sock:
                sock.setblocking(False)
                listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
                async with listener, trio.open_nursery() as nursery:
                    nursery.start_soon(trio.serve_listeners, echo, [listener])
                    assert await read_to_end(stream(patient)) == b"request"
                    nursery.cancel_scope.cancel()


async def test_a_wait_has_an_end_and_the_log_says_what_was_wrong(tmp_path: Path) -> None:
    policy = replace(PLAIN, wait_for_guest=0.2)
    async with serving(policy, dial_to=guest_at(tmp_path)) as route, route.connect() as client:
        await client.send_all(b"request")
        assert await is_reset(client)
        await route.closed("dial_not_found")
        assert dict(route.stats.held_results) == {"timeout": 1}
        assert dict(route.stats.dial_failures) == {"not_found": 1}
        [line] = route.events("dial_failed")
        assert "does not exist; the client was held for 0.2" in str(line["error"])
        assert "start the VM" in str(line["remedy"])
        assert "target_state" not in line  # a background dial found it, and logged target_down


async def test_a_client_beyond_the_most_that_are_held_is_reset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vsockproxy.dial.selection._MOST_HELD", 2)
    guest = guest_at(tmp_path)
    async with (
        serving(WAIT, dial_to=guest) as route,
        route.connect() as first,
        route.connect() as second,
    ):
        await until(lambda: route.stats.held == 2)
        async with route.connect() as third:
            assert await is_reset(third)
        await route.closed("dial_too_many_held")
        assert dict(route.stats.held_results) == {"full": 1}
        async with mux_server(Path(guest.path), {80: says(b"up")}):
            assert await read_to_end(first) == b"up"
            assert await read_to_end(second) == b"up"


async def test_an_error_that_time_does_not_mend_ends_the_wait(tmp_path: Path) -> None:
    guest = guest_at(tmp_path)
    async with serving(WAIT, dial_to=guest) as route, route.connect() as client:
        await until(lambda: route.stats.held == 1)
        async with mux_server(Path(guest.path), {80: echo}, answers(b"HTTP/1.1 400\n")):
            assert await is_reset(client)
            await route.closed("dial_protocol")
            async with route.connect() as later:
                assert await is_reset(later)
            await route.closed("dial_protocol", 2)
        assert dict(route.stats.held_results) == {"failed": 1}


async def test_whoever_finds_the_guest_up_brings_in_those_who_wait(tmp_path: Path) -> None:
    guest = guest_at(tmp_path)
    services: dict[int, Service] = {}
    async with (
        mux_server(Path(guest.path), services, answers_ok) as server,
        serving(WAIT, dial_to=guest) as route,
        route.connect() as client,
    ):
        await until(lambda: len(server.requests) > 3)  # the next dial is a while away
        services[80] = says(b"up")
        assert await route.listener.reach() is None
        assert await read_to_end(client) == b"up"


async def test_a_guest_that_is_looked_up_is_waited_for(tmp_path: Path) -> None:
    file = trio.Path(tmp_path) / "vsock-*.sock"
    guests = Guests((Guest("web", MuxGlob(str(file))),))
    web = GuestEndpoint("web", 80, over="vsock-mux")
    async with (
        serving(WAIT, dial_to=web, guests=guests) as route,
        route.connect() as client,
    ):
        await until(lambda: state_of(route) == "down")
        async with mux_server(tmp_path / "vsock-7.sock", {80: says(b"found")}):
            assert await read_to_end(client) == b"found"
        [down] = route.events("target_down")
        assert (down["target"], down["reason"]) == ("web:80", "guest")


async def test_a_defect_in_a_dial_ends_no_route(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    defects = [RuntimeError("a library is not what it seems")]

    async def breaks_once(*args: Any, **values: Any) -> socket.socket:
        if defects:
            raise defects.pop()
        return await dial(*args, **values)

    monkeypatch.setattr("vsockproxy.dial.target.dial", breaks_once)
    guest = guest_at(tmp_path)
    async with mux_server(Path(guest.path), {80: echo}), serving(WAIT, dial_to=guest) as route:
        assert await route.exchange(b"hello") == b"hello"
        [defect] = route.events("dial_error")
        assert defect["route"] == "route"


# --- clients that leave -------------------------------------------------------------------


def leaves_without_a_word(client: socket.socket) -> None:
    client.close()


def leaves_a_request_behind(client: socket.socket) -> None:
    client.send(b"request")
    client.close()


def resets(client: socket.socket) -> None:
    client.send(b"request")
    reset(client)


@pytest.mark.parametrize(
    ("family", "leave"),
    [
        ("tcp", leaves_without_a_word),
        ("tcp", resets),
        ("unix", leaves_without_a_word),
        ("unix", leaves_a_request_behind),
    ],
)
async def test_a_client_that_leaves_waits_no_more(
    tmp_path: Path, family: str, leave: Callable[[socket.socket], None]
) -> None:
    at = unix_at(tmp_path) if family == "unix" else TcpEndpoint("127.0.0.1", 0)
    guest = guest_at(tmp_path)
    async with (
        serving(WAIT, listen_at=at, dial_to=guest) as route,
        route.connect() as patient,
    ):
        leaver = route.connect()
        await until(lambda: route.stats.held == 2)
        leave(leaver.socket._sock)  # type: ignore[attr-defined] # no trio call closes so
        await route.closed("dial_client_left")
        assert route.stats.held == 1
        assert not route.stats.dial_failures
        assert not route.events("dial_failed")
        async with mux_server(Path(guest.path), {80: echo}) as server:
            assert await question(patient) == b"request"
            assert len(server.requests) == 1


@pytest.mark.parametrize("family", ["tcp", "unix"])
async def test_a_client_that_has_said_all_is_served_all_the_same(
    tmp_path: Path, family: str
) -> None:
    at = unix_at(tmp_path) if family == "unix" else TcpEndpoint("127.0.0.1", 0)
    guest = guest_at(tmp_path)
    async with serving(WAIT, listen_at=at, dial_to=guest) as route, route.connect() as client:
        await client.send_all(b"request")
        await client.send_eof()
        await until(lambda: route.stats.held == 1)
        async with route.connect() as other:  # by the time that it has left, both were looked at
            await until(lambda: route.stats.held == 2)
            await other.aclose()
            await route.closed("dial_client_left")
        async with mux_server(Path(guest.path), {80: echo}):
            assert await read_to_end(client) == b"request"


async def test_an_operator_can_end_a_client_that_waits(tmp_path: Path) -> None:
    async with (
        serving(WAIT, dial_to=guest_at(tmp_path)) as route,
        route.connect() as client,
    ):
        await until(lambda: route.stats.held == 1)
        [connection] = route.stats.live
        connection.end("killed")
        assert await is_reset(client)
        await route.closed("killed")
        assert route.stats.held == 0


async def test_those_who_ask_at_once_whether_a_target_answers_share_a_dial(tmp_path: Path) -> None:
    asked: list[int] = []

    async def answer(client: trio.SocketStream, port: int) -> bool:
        asked.append(port)
        return await answers_ok(client, port)

    async with (
        mux_server(tmp_path / "guest", {80: echo}, answer),
        serving(PLAIN, dial_to=guest_at(tmp_path)) as route,
    ):
        for dials in (1, 2):
            async with trio.open_nursery() as nursery:
                for _ in range(5):
                    nursery.start_soon(route.listener.reach)
            assert len(asked) == dials


# --- cold start ---------------------------------------------------------------------------


async def test_five_hundred_clients_of_a_guest_that_boots_are_served(tmp_path: Path) -> None:
    """Before it is up few dials are made, whatever their number; then one for each."""
    policy = replace(WAIT, wait_for_guest=60.0, handshake_timeout=None)
    number, at_once = 500, 0
    services: dict[int, Service] = {}
    guest = guest_at(tmp_path)
    answered = asked = 0

    async def counts(stream: trio.SocketStream, port: int) -> bool:
        nonlocal asked, answered, at_once
        asked += 1
        at_once = max(at_once, asked - answered)
        await trio.lowlevel.checkpoint()
        answered += 1
        return await answers_ok(stream, port)

    async def client(route: Served, answer: list[bytes]) -> None:
        async with route.connect() as stream:
            answer.append(await question(stream))

    async with (
        mux_server(Path(guest.path), services, counts) as server,
        serving(policy, listen_at=unix_at(tmp_path), dial_to=guest) as route,
    ):
        answer: list[bytes] = []
        async with trio.open_nursery() as nursery:
            for _ in range(number):
                nursery.start_soon(client, route, answer)
            await until(lambda: route.stats.held == number)
            before = len(server.requests)
            assert before < 20
            services[80] = echo
        assert answer == [b"request"] * number
        assert number <= len(server.requests) - before <= number + 10
        assert at_once <= 65
        assert dict(route.stats.held_results) == {"served": number}
        assert len(route.events("target_down")) == len(route.events("target_up")) == 1


async def test_many_clients_of_a_guest_that_never_boots_are_told_in_time(tmp_path: Path) -> None:
    policy = replace(WAIT, wait_for_guest=0.5)
    guest = guest_at(tmp_path)
    async with (
        mux_server(Path(guest.path), {}) as server,
        serving(policy, listen_at=unix_at(tmp_path), dial_to=guest) as route,
    ):
        clients = [route.connect() for _ in range(100)]
        await route.closed("dial_refused", 100)
        for client in clients:
            assert await is_reset(client) or True  # a Unix client sees an end, not a reset
            await client.aclose()
        assert dict(route.stats.held_results) == {"timeout": 100}
        assert len(server.requests) < 20


# --- failing fast -------------------------------------------------------------------------


async def test_clients_of_a_target_that_is_down_are_refused_without_a_dial(tmp_path: Path) -> None:
    guest = guest_at(tmp_path)
    policy = replace(PLAIN, fail_fast=True)
    async with serving(policy, dial_to=guest) as route:
        async with route.connect() as first:
            assert await is_reset(first)
        await route.closed("dial_not_found")
        async with mux_server(Path(guest.path), {80: echo}, answers_nothing) as server:
            await until(lambda: bool(server.requests))  # the daemon's own, which never ends
            async with route.connect() as second:
                assert await is_reset(second)
            await route.closed("dial_not_found", 2)
            assert len(server.requests) == 1
            assert route.stats.last_error is not None
            assert route.stats.last_error.reason == "not_found"


async def test_a_target_that_failed_fast_is_dialled_again_once_it_is_back(tmp_path: Path) -> None:
    guest = guest_at(tmp_path)
    async with serving(replace(PLAIN, fail_fast=True), dial_to=guest) as route:
        async with route.connect() as first:
            assert await is_reset(first)
        async with mux_server(Path(guest.path), {80: echo}):
            await until(lambda: state_of(route) == "up")
            assert await route.exchange(b"hello") == b"hello"


async def test_a_target_that_somebody_else_found_down_is_dialled_again_too(tmp_path: Path) -> None:
    guest = guest_at(tmp_path)
    async with serving(replace(PLAIN, fail_fast=True), dial_to=guest) as route:
        assert "start the VM" in str(await route.listener.reach())
        async with route.connect() as client:
            assert await is_reset(client)
        await route.closed("dial_not_found")
        [line] = route.events("dial_failed")
        assert "fail_fast" in str(line["error"])
        async with mux_server(Path(guest.path), {80: echo}):
            await until(lambda: state_of(route) == "up")
            assert await route.exchange(b"hello") == b"hello"


async def test_a_port_that_is_refused_is_not_taken_for_a_guest_that_is_down(
    tmp_path: Path,
) -> None:
    guest = guest_at(tmp_path)
    services: dict[int, Service] = {}
    async with (
        mux_server(Path(guest.path), services) as server,
        serving(replace(PLAIN, fail_fast=True), dial_to=guest) as route,
    ):
        async with route.connect() as first:
            assert await is_reset(first)
        assert state_of(route) == "refused"
        services[80] = echo
        assert await route.exchange(b"hello") == b"hello"
        assert len(server.requests) == 2


# --- several targets ----------------------------------------------------------------------


def with_targets(route: Served, *targets: MuxEndpoint, policy: Policy | None = None) -> None:
    was = route.listener.route
    route.listener.reconfigure(
        replace(was, target=targets[0], others=targets[1:], policy=policy or was.policy)
    )


async def test_the_first_target_that_answers_is_taken(tmp_path: Path) -> None:
    one, two = guest_at(tmp_path, "one"), guest_at(tmp_path, "two")
    async with (
        mux_server(Path(two.path), {80: says(b"two")}),
        serving(PLAIN) as route,
    ):
        with_targets(route, one, two)
        assert await route.exchange(b"") == b"two"
        assert (state_of(route), state_of(route, 1)) == ("down", "up")
        await route.closed("finished")
        [line] = route.events("connection_closed")
        assert line["target"] == str(two)
        assert not route.stats.dial_failures
        async with mux_server(Path(one.path), {80: says(b"one")}):
            await until(lambda: state_of(route) == "up")
            assert await route.exchange(b"") == b"one"


async def test_targets_take_turns_as_long_as_they_are_up(tmp_path: Path) -> None:
    guests = [guest_at(tmp_path, name) for name in ("one", "two", "three")]
    one, two, three = guests
    async with (
        mux_server(Path(one.path), {80: says(b"one")}),
        mux_server(Path(three.path), {80: says(b"three")}),
        serving(PLAIN) as route,
    ):
        with_targets(route, *guests, policy=replace(PLAIN, balance="round_robin"))
        async with mux_server(Path(two.path), {80: says(b"two")}):
            answers = [await route.exchange(b"") for _ in range(6)]
            assert sorted(answers) == [b"one"] * 2 + [b"three"] * 2 + [b"two"] * 2
        for _ in range(3):
            assert await route.exchange(b"") in (b"one", b"three")
        assert state_of(route, 1) == "down"
        answers = [await route.exchange(b"") for _ in range(4)]
        assert sorted(answers) == [b"one"] * 2 + [b"three"] * 2


async def test_a_route_whose_targets_all_fail_says_what_the_last_one_said(tmp_path: Path) -> None:
    one, two = guest_at(tmp_path, "one"), guest_at(tmp_path, "two")
    async with mux_server(Path(two.path), {}), serving(PLAIN) as route:
        with_targets(route, one, two)
        async with route.connect() as client:
            assert await is_reset(client)
        await route.closed("dial_refused")


async def test_clients_that_wait_get_whichever_target_answers_first(tmp_path: Path) -> None:
    one, two = guest_at(tmp_path, "one"), guest_at(tmp_path, "two")
    async with serving(PLAIN) as route:
        with_targets(route, one, two, policy=WAIT)
        async with route.connect() as client:
            await until(lambda: state_of(route) == state_of(route, 1) == "down")
            async with mux_server(Path(two.path), {80: says(b"two")}):
                assert await read_to_end(client) == b"two"
        await route.closed("finished")
        assert route.events("connection_closed")[0]["target"] == str(two)


# --- what is known ------------------------------------------------------------------------


async def test_a_change_is_one_line_however_many_clients_see_it(tmp_path: Path) -> None:
    guest = guest_at(tmp_path)
    async with serving(PLAIN, dial_to=guest) as route:
        assert state_of(route) == "unknown"
        for _ in range(5):
            async with route.connect() as client:
                assert await is_reset(client)
        await route.closed("dial_not_found", 5)
        async with mux_server(Path(guest.path), {80: echo}):
            for _ in range(5):
                assert await route.exchange(b"hello") == b"hello"
        [down] = route.events("dial_failed")
        assert (down["target_state"], down["reason"]) == ("down", "not_found")
        assert "start the VM" in str(down["remedy"])
        assert not route.events("target_down")
        [up] = route.events("target_up")
        assert (up["was"], up["target"]) == ("down", str(guest))
        assert float(str(up["seconds"])) > 0


async def test_a_target_that_comes_and_goes_is_not_told_each_time(tmp_path: Path) -> None:
    guest = guest_at(tmp_path)
    async with serving(PLAIN, dial_to=guest) as route:
        for _ in range(3):
            async with route.connect() as client:
                assert await is_reset(client)
            async with mux_server(Path(guest.path), {80: echo}):
                assert await route.exchange(b"hello") == b"hello"
        assert len(route.events("dial_failed")) == len(route.events("target_up")) == 1
        assert state_of(route) == "up"


async def test_probes_find_out_without_any_client(tmp_path: Path) -> None:
    guest = guest_at(tmp_path)
    async with serving(replace(PLAIN, probe_interval=0.01), dial_to=guest) as route:
        await until(lambda: state_of(route) == "down")
        error = route.stats.targets[0].last_error
        assert error is not None
        assert error.reason == "not_found"
        async with mux_server(Path(guest.path), {80: echo}):
            await until(lambda: state_of(route) == "up")
        await until(lambda: state_of(route) == "down")
        assert not route.stats.connections


async def test_a_reload_ends_probes_and_begins_others(tmp_path: Path) -> None:
    one, two = guest_at(tmp_path, "one"), guest_at(tmp_path, "two")
    async with (
        mux_server(Path(one.path), {80: echo}) as first,
        mux_server(Path(two.path), {80: echo}) as second,
        serving(replace(PLAIN, probe_interval=0.01), dial_to=one) as route,
    ):
        await until(lambda: len(first.requests) > 2)
        with_targets(route, two)
        seen = len(first.requests)
        await until(lambda: len(second.requests) > 2)
        assert len(first.requests) <= seen + 1  # one was under way
        with_targets(route, two, policy=PLAIN)
        await until(lambda: second.requests[-1] == mux.connect_request(80))
        assert [state.address for state in route.stats.targets] == [two]


async def test_a_reload_keeps_what_is_known_and_those_who_wait(tmp_path: Path) -> None:
    one, two = guest_at(tmp_path, "one"), guest_at(tmp_path, "two")
    async with serving(WAIT, dial_to=one) as route, route.connect() as client:
        await until(lambda: state_of(route) == "down")
        since = route.stats.targets[0].since
        route.reconfigure(replace(WAIT, idle_timeout=60.0))
        assert route.stats.targets[0].since == since
        with_targets(route, two)
        async with mux_server(Path(two.path), {80: says(b"two")}):
            assert await read_to_end(client) == b"two"


async def test_a_route_is_ready_once_a_target_is_up_where_that_is_asked(tmp_path: Path) -> None:
    guest = guest_at(tmp_path)
    async with serving(replace(PLAIN, ready_when_up=True), dial_to=guest) as route:
        await until(lambda: state_of(route) == "down")
        not_ready = route.listener.not_ready()
        assert not_ready is not None
        assert not_ready.startswith(f"route route: cannot dial {guest}: the VMM's socket does not")
        async with mux_server(Path(guest.path), {80: echo}):
            await until(lambda: route.listener.not_ready() is None)
        async with route.connect() as client:
            assert await is_reset(client)
        assert route.listener.not_ready() is not None
        async with mux_server(Path(guest.path), {80: echo}):
            await until(lambda: route.listener.not_ready() is None)


async def test_the_daemon_is_ready_with_its_routes(tmp_path: Path) -> None:
    guest, listen_at = guest_at(tmp_path), unix_at(tmp_path)
    policy = replace(PLAIN, ready_when_up=True)
    daemon = Daemon(Config((Route("web", listen_at, guest, policy),)))
    async with trio.open_nursery() as nursery:
        await nursery.start(daemon.run)
        [not_ready] = daemon.not_ready()
        assert not_ready.startswith(f"route web: cannot dial {guest}")
        async with mux_server(Path(guest.path), {80: echo}):
            await until(lambda: daemon.not_ready() == [])
        nursery.cancel_scope.cancel()


async def test_no_route_is_asked_for_its_targets_unless_it_says_so(tmp_path: Path) -> None:
    async with serving(PLAIN, dial_to=guest_at(tmp_path)) as route:
        async with route.connect() as client:
            assert await is_reset(client)
        assert state_of(route) == "down"
        assert route.listener.not_ready() is None


async def test_a_vm_that_is_restarted_is_waited_for(tmp_path: Path) -> None:
    guest = guest_at(tmp_path)
    vmm = Vmm(tmp_path / "guest", {80: echo})
    async with serving(WAIT, dial_to=guest) as route:
        async with vmm.running():
            assert await route.exchange(b"before") == b"before"
        async with route.connect() as client:
            await until(lambda: route.stats.held == 1)
            async with vmm.running():
                assert await question(client) == b"request"
