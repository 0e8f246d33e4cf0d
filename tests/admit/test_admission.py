"""Limits: clients queued or rejected, and free room used immediately."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio

from tests.listen.running_route import Served, serving, unix_at
from tests.sockets import ends_by_reset
from tests.waiting import PATIENCE
from vsockproxy.admit.process_limits import Admission
from vsockproxy.config.process import Limits
from vsockproxy.config.settings import Policy

# ---- max_connections ----


async def test_clients_over_max_connections_are_queued_until_one_ends() -> None:
    async with serving(Policy(max_connections=2)) as route:
        first, second = await route.live(), await route.live()
        third = route.connect()
        await third.send_all(b"x")
        await route.queues("max_connections")
        assert len(route.stats.live) == 2
        await first.aclose()
        with trio.fail_after(PATIENCE):
            assert await third.receive_some() == b"x"
        assert route.stats.rejected.total() == 0
        await second.aclose()
        await third.aclose()


async def test_many_queued_clients_are_all_served() -> None:
    async with serving(Policy(max_connections=3)) as route:

        async def client() -> None:
            assert await route.exchange(b"hello") == b"hello"
            assert len(route.stats.live) <= 3

        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as clients:
                for _ in range(50):
                    clients.start_soon(client)
        await route.closed("finished", 50)
        assert route.stats.accept_pauses["max_connections"]


async def test_over_limit_reject_resets_clients_over_max_connections() -> None:
    async with serving(Policy(max_connections=1, over_limit="reject")) as route:
        first = await route.live()
        assert await ends_by_reset(route.connect())
        await route.rejected("max_connections")
        assert route.stats.connections == 1, "a rejected client is not a connection"
        await first.aclose()
        await route.closed("finished")
        assert await route.exchange(b"x") == b"x"


async def test_a_reload_that_raises_max_connections_admits_queued_clients() -> None:
    async with (
        serving(Policy(max_connections=1)) as route,
        await route.live(),
        route.connect() as second,
    ):
        await second.send_all(b"x")
        await route.queues("max_connections")
        route.reconfigure(Policy(max_connections=2))
        with trio.fail_after(PATIENCE):
            assert await second.receive_some() == b"x"


async def test_a_reloaded_max_connections_counts_open_connections() -> None:
    async with serving(Policy()) as route, await route.live(), await route.live():
        route.reconfigure(Policy(max_connections=2, over_limit="reject"))
        assert await ends_by_reset(route.connect())
        await route.rejected("max_connections")


async def test_a_drain_does_not_wait_for_queued_clients() -> None:
    async with (
        serving(Policy(max_connections=1, drain_timeout=0.0)) as route,
        await route.live(),
        route.connect(),
    ):
        await route.queues("max_connections")
        route.listener.drain()
        with trio.fail_after(PATIENCE):
            await route.listener.released.wait()


# ---- the limit of all routes ----


async def test_routes_share_limits_max_connections_and_its_free_room() -> None:
    admission = Admission(Limits(max_connections=2))
    async with (
        serving(Policy(), admission=admission) as one,
        serving(Policy(), admission=admission) as two,
    ):
        first, second = await one.live(), await two.live()

        async def client(route: Served) -> None:
            assert await route.exchange(b"hello") == b"hello"
            assert admission.live <= 2

        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as clients:
                for number in range(30):
                    clients.start_soon(client, (one, two)[number % 2])
                await one.queues("limits_max_connections")
                await two.queues("limits_max_connections")
                assert admission.live == 2
                assert not admission.is_open
                await first.aclose()
                await second.aclose()
        await one.closed("finished", 16)
        await two.closed("finished", 16)
        assert admission.live == 0
        assert admission.is_open


async def test_room_that_one_route_cannot_use_goes_to_another() -> None:
    """The woken route has reached its own limit meanwhile."""
    admission = Admission(Limits(max_connections=2))
    async with (
        serving(Policy(), admission=admission) as narrow,
        serving(Policy(), admission=admission) as wide,
        await narrow.live(),
    ):
        ends = await wide.live()
        async with narrow.connect(), wide.connect() as client:
            await narrow.queues("limits_max_connections")
            await client.send_all(b"x")
            await wide.queues("limits_max_connections")
            narrow.reconfigure(Policy(max_connections=1))
            await ends.aclose()
            with trio.fail_after(PATIENCE):
                assert await client.receive_some() == b"x"


async def test_a_reload_of_the_shared_limit_admits_queued_clients() -> None:
    admission = Admission(Limits(max_connections=1))
    async with (
        serving(Policy(), admission=admission) as route,
        await route.live(),
        route.connect() as second,
    ):
        await second.send_all(b"x")
        await route.queues("limits_max_connections")
        admission.reconfigure(Limits())
        with trio.fail_after(PATIENCE):
            assert await second.receive_some() == b"x"


# ---- connection_rate ----


async def test_connection_rate_admits_one_seconds_worth_and_rejects_the_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("vsockproxy.admit.token_bucket.monotonic", lambda: 0.0)
    async with serving(Policy(connection_rate=2.5, over_limit="reject")) as route:
        for _ in range(3):
            assert await route.exchange(b"x") == b"x"
        assert await ends_by_reset(route.connect())
        await route.rejected("connection_rate")


async def test_connection_rate_spreads_queued_clients() -> None:
    async with serving(Policy(connection_rate=4.0)) as route:
        started = trio.current_time()
        for _ in range(6):
            assert await route.exchange(b"x") == b"x"
        assert trio.current_time() - started >= 2 / 4
        assert route.stats.accept_pauses["connection_rate"]


async def test_a_reload_with_the_same_rate_does_not_fill_the_bucket() -> None:
    policy = Policy(connection_rate=0.001, over_limit="reject")
    async with serving(policy) as route:
        assert await route.exchange(b"x") == b"x"
        route.reconfigure(policy)
        assert await ends_by_reset(route.connect())


# ---- max_connections_per_source ----


async def test_a_source_over_its_limit_is_reset_and_others_are_admitted() -> None:
    async with serving(Policy(max_connections_per_source=1)) as route:
        first = await route.live("127.0.0.1")
        assert await ends_by_reset(route.connect("127.0.0.1"))
        await route.rejected("max_connections_per_source")
        assert await route.exchange(b"x", "127.0.0.2") == b"x"
        await first.aclose()
        await route.closed("finished", 2)
        assert await route.exchange(b"x", "127.0.0.1") == b"x"
        await route.closed("finished", 3)
        assert route.stats.sources == {}, "a source that is gone takes no room"


async def test_a_reload_counts_the_sources_of_live_connections() -> None:
    async with serving(Policy()) as route:
        live = await route.live("127.0.0.1")
        route.reconfigure(Policy(max_connections_per_source=1))
        assert await ends_by_reset(route.connect("127.0.0.1"))
        assert await route.exchange(b"x", "127.0.0.2") == b"x"
        await live.aclose()
        await route.closed("finished", 2)
        assert route.stats.sources == {}


async def test_clients_of_a_unix_socket_are_counted_by_their_user(tmp_path: Path) -> None:
    policy = Policy(max_connections_per_source=1)
    async with serving(policy, listen_at=unix_at(tmp_path)) as route, await route.live():
        assert route.stats.sources == {f"uid:{os.geteuid()}": 1}
        client = route.connect()
        await route.rejected("max_connections_per_source")
        await client.aclose()
