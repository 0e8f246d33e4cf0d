"""Clients held until their guest is up: served, dismissed, timed out, or gone."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.dial.fake_vmm import Vmm
from tests.dial.selecting import (
    PLAIN,
    WAIT,
    guest_at,
    question,
    state_of,
    with_targets,
)
from tests.fake_services import (
    Service,
    answers,
    answers_nothing,
    answers_ok,
    echo,
    mux_server,
    says,
    unix_listener,
    unix_server,
    unused_tcp_port,
)
from tests.listen.running_route import Served, serving, unix_at
from tests.sockets import ends_by_reset, read_to_end, reset, stream
from tests.waiting import PATIENCE, until
from vsockproxy.address.endpoint import (
    CID_ANY,
    CID_LOCAL,
    PORT_ANY,
    GuestEndpoint,
    TcpEndpoint,
    UnixEndpoint,
    VsockEndpoint,
)
from vsockproxy.config.guest import Guest, MuxGlob
from vsockproxy.config.settings import Balance
from vsockproxy.dial.dial import dial
from vsockproxy.guests.directory import Guests

# --- held clients ------------------------------------------------------------------------


async def test_a_client_before_its_vm_is_held_and_served_once_the_vm_runs(tmp_path: Path) -> None:
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


async def test_a_client_is_held_while_its_service_does_not_listen(tmp_path: Path) -> None:
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


async def test_a_client_is_held_while_its_guest_does_not_answer(tmp_path: Path) -> None:
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
async def test_clients_of_tcp_and_unix_targets_are_held_too(tmp_path: Path, kind: str) -> None:
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
async def test_a_held_vsock_client_is_served_and_one_that_leaves_is_released(
    tmp_path: Path,
) -> None:
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
            async with unix_server(service, echo):
                assert await read_to_end(stream(patient)) == b"request"


async def test_wait_for_guest_over_resets_the_client_and_logs_the_last_error(
    tmp_path: Path,
) -> None:
    policy = replace(PLAIN, wait_for_guest=0.2)
    began = trio.current_time()
    async with serving(policy, dial_to=guest_at(tmp_path)) as route, route.connect() as client:
        await client.send_all(b"request")
        assert await ends_by_reset(client)
        await route.closed("dial_not_found")
        longest = round(trio.current_time() - began, 2) + 0.01  # the log's figure is rounded
        assert dict(route.stats.held_results) == {"timeout": 1}
        assert dict(route.stats.dial_failures) == {"not_found": 1}
        [line] = route.events("dial_failed")
        held = re.search(r"does not exist; the client was held for ([\d.]+) s", str(line["error"]))
        assert held
        assert 0.2 <= float(held[1]) <= longest
        assert "start the VM" in str(line["remedy"])
        assert "target_state" not in line  # a background dial found it, and logged target_down


async def test_a_client_beyond_the_most_held_ends_by_reset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vsockproxy.dial.selection.MOST_HELD", 2)
    guest = guest_at(tmp_path)
    async with (
        serving(WAIT, dial_to=guest) as route,
        route.connect() as first,
        route.connect() as second,
    ):
        await until(lambda: route.stats.held == 2)
        async with route.connect() as third:
            assert await ends_by_reset(third)
        await route.closed("dial_too_many_held")
        assert dict(route.stats.held_results) == {"full": 1}
        async with mux_server(Path(guest.path), {80: says(b"up")}):
            assert await read_to_end(first) == b"up"
            assert await read_to_end(second) == b"up"


async def test_a_permanent_error_dismisses_the_held_clients(tmp_path: Path) -> None:
    guest = guest_at(tmp_path)
    async with serving(WAIT, dial_to=guest) as route, route.connect() as client:
        await until(lambda: route.stats.held == 1)
        async with mux_server(Path(guest.path), {80: echo}, answers(b"HTTP/1.1 400\n")):
            assert await ends_by_reset(client)
            await route.closed("dial_protocol")
            async with route.connect() as later:
                assert await ends_by_reset(later)
            await route.closed("dial_protocol", 2)
        assert dict(route.stats.held_results) == {"failed": 1}


async def test_a_successful_dial_wakes_the_held_clients(tmp_path: Path) -> None:
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


async def test_a_client_is_held_until_its_guest_is_found(tmp_path: Path) -> None:
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


async def test_a_bug_in_a_background_dial_is_logged_and_ends_no_route(
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


class Steps(trio.abc.Instrument):
    """Count the steps of tasks that run one function."""

    def __init__(self, function: str) -> None:
        self.number = 0
        self._function = function

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.number += task.name.endswith(f".{self._function}")


@pytest.mark.parametrize("balance", ["first", "round_robin"])
async def test_held_clients_are_served_by_the_target_that_is_up_while_the_first_is_silent(
    tmp_path: Path, balance: Balance
) -> None:
    silent, up = guest_at(tmp_path, "silent"), guest_at(tmp_path, "up")
    policy = replace(
        WAIT, balance=balance, handshake_timeout=None, connect_timeout=60.0, wait_for_guest=60.0
    )
    steps = Steps("_dial_for_held")
    services: dict[int, Service] = {}
    async with (
        mux_server(Path(silent.path), {80: echo}, answers_nothing) as first,
        mux_server(Path(up.path), services) as second,
        serving(PLAIN, listen_at=unix_at(tmp_path)) as route,
    ):
        with_targets(route, silent, up, policy=policy)
        clients = [route.connect() for _ in range(6)]
        await until(lambda: route.stats.held == 6)
        before = len(second.requests)
        trio.lowlevel.add_instrument(steps)
        services[80] = says(b"up")
        with trio.fail_after(PATIENCE):
            for client in clients:
                async with client:
                    assert await read_to_end(client) == b"up"
        trio.lowlevel.remove_instrument(steps)
        assert len(first.requests) == 1
        assert len(second.requests) <= before + 6 + 6  # each task may dial once more
        assert steps.number < 100
        assert state_of(route) == "unknown"


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
async def test_a_held_client_that_leaves_is_released(
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
async def test_a_held_client_that_half_closes_is_served(tmp_path: Path, family: str) -> None:
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


async def test_killing_a_held_client_resets_it(tmp_path: Path) -> None:
    async with (
        serving(WAIT, dial_to=guest_at(tmp_path)) as route,
        route.connect() as client,
    ):
        await until(lambda: route.stats.held == 1)
        [connection] = route.stats.live
        connection.end("killed")
        assert await ends_by_reset(client)
        await route.closed("killed")
        assert route.stats.held == 0


# --- cold start ---------------------------------------------------------------------------


async def test_five_hundred_held_clients_cost_few_dials_and_are_served(tmp_path: Path) -> None:
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


async def test_many_held_clients_of_a_guest_that_never_boots_are_ended_in_time(
    tmp_path: Path,
) -> None:
    policy = replace(WAIT, wait_for_guest=0.5)
    guest = guest_at(tmp_path)
    async with (
        mux_server(Path(guest.path), {}) as server,
        serving(policy, listen_at=unix_at(tmp_path), dial_to=guest) as route,
    ):
        clients = [route.connect() for _ in range(100)]
        await route.closed("dial_refused", 100)
        for client in clients:
            assert await ends_by_reset(client) is False  # Unix sockets have no RST
        assert dict(route.stats.held_results) == {"timeout": 100}
        assert len(server.requests) < 20


async def test_a_client_during_a_vm_restart_is_held_and_served(tmp_path: Path) -> None:
    guest = guest_at(tmp_path)
    vmm = Vmm(tmp_path / "guest", {80: echo})
    async with serving(WAIT, dial_to=guest) as route:
        async with vmm.running():
            assert await route.exchange(b"before") == b"before"
        async with route.connect() as client:
            await until(lambda: route.stats.held == 1)
            async with vmm.running():
                assert await question(client) == b"request"
