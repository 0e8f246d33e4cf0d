"""The choice among targets: fail_fast, several targets, their states, probes and readiness."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import trio

from tests.dial.selecting import (
    PLAIN,
    WAIT,
    guest_at,
    state_of,
    with_targets,
)
from tests.fake_services import (
    Service,
    answers_nothing,
    answers_ok,
    echo,
    mux_server,
    says,
)
from tests.listen.running_route import serving, unix_at
from tests.sockets import ends_by_reset, read_to_end
from tests.waiting import until
from vsockproxy.config.settings import Config, Route
from vsockproxy.daemon.daemon import Daemon
from vsockproxy.dial import mux_line

# --- failing fast -------------------------------------------------------------------------


async def test_fail_fast_resets_clients_of_a_down_target_without_a_dial(tmp_path: Path) -> None:
    guest = guest_at(tmp_path)
    policy = replace(PLAIN, fail_fast=True)
    async with serving(policy, dial_to=guest) as route:
        async with route.connect() as first:
            assert await ends_by_reset(first)
        await route.closed("dial_not_found")
        async with mux_server(Path(guest.path), {80: echo}, answers_nothing) as server:
            await until(lambda: bool(server.requests))  # the daemon's own, which never ends
            async with route.connect() as second:
                assert await ends_by_reset(second)
            await route.closed("dial_not_found", 2)
            assert len(server.requests) == 1
            assert route.stats.last_error is not None
            assert route.stats.last_error.reason == "not_found"


async def test_fail_fast_ends_once_the_target_is_back(tmp_path: Path) -> None:
    guest = guest_at(tmp_path)
    async with serving(replace(PLAIN, fail_fast=True), dial_to=guest) as route:
        async with route.connect() as first:
            assert await ends_by_reset(first)
        async with mux_server(Path(guest.path), {80: echo}):
            await until(lambda: state_of(route) == "up")
            assert await route.exchange(b"hello") == b"hello"


async def test_fail_fast_follows_a_state_found_by_a_readiness_check(tmp_path: Path) -> None:
    guest = guest_at(tmp_path)
    async with serving(replace(PLAIN, fail_fast=True), dial_to=guest) as route:
        assert "start the VM" in str(await route.listener.reach())
        async with route.connect() as client:
            assert await ends_by_reset(client)
        await route.closed("dial_not_found")
        [line] = route.events("dial_failed")
        assert "fail_fast" in str(line["error"])
        async with mux_server(Path(guest.path), {80: echo}):
            await until(lambda: state_of(route) == "up")
            assert await route.exchange(b"hello") == b"hello"


async def test_fail_fast_still_dials_a_refused_target(
    tmp_path: Path,
) -> None:
    guest = guest_at(tmp_path)
    services: dict[int, Service] = {}
    async with (
        mux_server(Path(guest.path), services) as server,
        serving(replace(PLAIN, fail_fast=True), dial_to=guest) as route,
    ):
        async with route.connect() as first:
            assert await ends_by_reset(first)
        assert state_of(route) == "refused"
        services[80] = echo
        assert await route.exchange(b"hello") == b"hello"
        assert len(server.requests) == 2


# --- several targets ----------------------------------------------------------------------


async def test_a_failed_dial_goes_on_to_the_next_target(tmp_path: Path) -> None:
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


async def test_round_robin_takes_the_targets_that_are_up_in_turn(tmp_path: Path) -> None:
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


async def test_all_targets_failing_gives_the_last_ones_reason(tmp_path: Path) -> None:
    one, two = guest_at(tmp_path, "one"), guest_at(tmp_path, "two")
    async with mux_server(Path(two.path), {}), serving(PLAIN) as route:
        with_targets(route, one, two)
        async with route.connect() as client:
            assert await ends_by_reset(client)
        await route.closed("dial_refused")


async def test_held_clients_get_the_first_target_that_answers(tmp_path: Path) -> None:
    one, two = guest_at(tmp_path, "one"), guest_at(tmp_path, "two")
    async with serving(PLAIN) as route:
        with_targets(route, one, two, policy=WAIT)
        async with route.connect() as client:
            await until(lambda: state_of(route) == state_of(route, 1) == "down")
            async with mux_server(Path(two.path), {80: says(b"two")}):
                assert await read_to_end(client) == b"two"
        await route.closed("finished")
        assert route.events("connection_closed")[0]["target"] == str(two)


# --- target states -----------------------------------------------------------------------


async def test_a_state_change_is_logged_once_however_many_clients_see_it(tmp_path: Path) -> None:
    guest = guest_at(tmp_path)
    async with serving(PLAIN, dial_to=guest) as route:
        assert state_of(route) == "unknown"
        for _ in range(5):
            async with route.connect() as client:
                assert await ends_by_reset(client)
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


async def test_a_flapping_target_is_logged_once_in_ten_seconds(tmp_path: Path) -> None:
    guest = guest_at(tmp_path)
    async with serving(PLAIN, dial_to=guest) as route:
        for _ in range(3):
            async with route.connect() as client:
                assert await ends_by_reset(client)
            async with mux_server(Path(guest.path), {80: echo}):
                assert await route.exchange(b"hello") == b"hello"
        await route.closed("finished", 3)
        assert len(route.events("dial_failed")) == len(route.events("target_up")) == 1
        assert state_of(route) == "up"


async def test_probes_follow_the_state_without_any_client(tmp_path: Path) -> None:
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


async def test_a_reload_replaces_the_probes(tmp_path: Path) -> None:
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
        await until(lambda: second.requests[-1] == mux_line.connect_request(80))
        assert [state.address for state in route.stats.targets] == [two]


async def test_a_reload_keeps_target_states_and_held_clients(tmp_path: Path) -> None:
    one, two = guest_at(tmp_path, "one"), guest_at(tmp_path, "two")
    async with serving(WAIT, dial_to=one) as route, route.connect() as client:
        await until(lambda: state_of(route) == "down")
        since = route.stats.targets[0].since
        route.reconfigure(replace(WAIT, idle_timeout=60.0))
        assert route.stats.targets[0].since == since
        with_targets(route, two)
        async with mux_server(Path(two.path), {80: says(b"two")}):
            assert await read_to_end(client) == b"two"


async def test_ready_when_up_makes_a_route_ready_once_a_target_is_up(tmp_path: Path) -> None:
    guest = guest_at(tmp_path)
    async with serving(replace(PLAIN, ready_when_up=True), dial_to=guest) as route:
        await until(lambda: state_of(route) == "down")
        not_ready = route.listener.not_ready()
        assert not_ready is not None
        assert not_ready.startswith(f"route route: cannot dial {guest}: the VMM's socket does not")
        async with mux_server(Path(guest.path), {80: echo}):
            await until(lambda: route.listener.not_ready() is None)
        async with route.connect() as client:
            assert await ends_by_reset(client)
        assert route.listener.not_ready() is not None
        async with mux_server(Path(guest.path), {80: echo}):
            await until(lambda: route.listener.not_ready() is None)


async def test_the_daemon_is_ready_once_its_routes_are(tmp_path: Path) -> None:
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


async def test_a_down_target_leaves_a_route_ready_without_ready_when_up(tmp_path: Path) -> None:
    async with serving(PLAIN, dial_to=guest_at(tmp_path)) as route:
        async with route.connect() as client:
            assert await ends_by_reset(client)
        await route.closed("dial_not_found")
        assert state_of(route) == "down"
        assert route.listener.not_ready() is None


async def test_concurrent_readiness_checks_share_a_dial(tmp_path: Path) -> None:
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
