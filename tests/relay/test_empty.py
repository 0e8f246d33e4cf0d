"""Connections without a byte, such as a load balancer's checks: not logged, not dialled."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from tests.fake_services import hold
from tests.listen.running_route import Served, serving
from tests.sockets import ends_by_reset
from tests.waiting import PATIENCE, until
from vsockproxy.address.endpoint import UnixEndpoint
from vsockproxy.config.access import parse_rule
from vsockproxy.config.settings import Policy, PumpChoice
from vsockproxy.pump.transfer import EndReason

LOOPBACK = (parse_rule("127.0.0.1"),)


def lines(route: Served) -> list[object]:
    """Return the reason in each access line."""
    return [line["reason"] for line in route.events("connection_closed")]


async def reset(client: trio.SocketStream) -> None:
    """Close a client by RST, as some checks do."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    await client.aclose()


# ---- log_empty ----


@pytest.mark.parametrize("log_empty", [True, False])
async def test_log_empty_decides_on_the_line_of_a_connection_without_a_byte(
    choice: PumpChoice, log_empty: bool
) -> None:
    async with serving(Policy(log_empty=log_empty), choice=choice) as route:
        await route.connect().aclose()
        await route.closed("finished")
        assert lines(route) == ["finished"] * log_empty
        assert await route.exchange(b"x") == b"x"
        await until(lambda: len(lines(route)) == 1 + log_empty)


async def test_without_log_empty_a_check_that_resets_has_no_line(choice: PumpChoice) -> None:
    async with serving(Policy(log_empty=False), service=hold, choice=choice) as route:
        client = route.connect()
        await until(lambda: [one for one in route.stats.live if one.running])
        await reset(client)
        await route.closed("client_reset")
        assert lines(route) == []


@pytest.mark.parametrize("reason", ["drained", "shutdown"])
async def test_an_empty_connection_that_ends_with_the_daemon_has_no_line_by_default(
    choice: PumpChoice, reason: EndReason
) -> None:
    async with serving(Policy(), service=hold, choice=choice) as route:
        async with route.connect() as client:
            await until(lambda: [one for one in route.stats.live if one.running])
            await client.send_eof()
            [connection] = route.stats.live
            connection.end(reason)
            await route.closed(reason)
        assert route.stats.connections == 1
        assert lines(route) == []


async def test_without_log_empty_a_failed_dial_and_a_timeout_have_a_line_each(
    tmp_path: Path,
) -> None:
    policy = Policy(log_empty=False, idle_timeout=0.05)
    async with serving(policy, service=hold) as route:
        async with route.connect():
            await route.closed("idle_timeout")
        absent = UnixEndpoint(str(tmp_path / "absent"))
        route.listener.reconfigure(replace(route.listener.route, target=absent))
        assert await ends_by_reset(route.connect())
        await until(lambda: route.events("dial_failed"))
        await route.closed("dial_not_found")
        assert lines(route) == ["idle_timeout"]


async def test_a_client_that_leaves_before_its_header_is_not_malformed() -> None:
    policy = Policy(accept_proxy=True, proxy_trusted=LOOPBACK, log_empty=False)
    async with serving(policy) as route:
        await route.connect().aclose()
        await route.closed("dial_client_left")
        assert route.stats.rejected.total() == 0
        assert not route.log.calls


# ---- dial_on_data ----


class Dials:
    """A target that counts its connections and echoes."""

    def __init__(self) -> None:
        self.number = 0

    async def __call__(self, stream: trio.SocketStream) -> None:
        self.number += 1
        async with stream:
            async for data in stream:
                await stream.send_all(data)


@pytest.mark.parametrize("end", [trio.SocketStream.aclose, trio.SocketStream.send_eof, reset])
async def test_with_dial_on_data_a_client_without_a_byte_is_never_dialled_for(
    end: Callable[[trio.SocketStream], Awaitable[None]],
) -> None:
    service = Dials()
    async with serving(Policy(dial_on_data=True), service=service) as route:
        async with aclosing(route.connect()) as client:
            await until(lambda: route.stats.live)
            await end(client)
            await route.closed("dial_client_left")
        assert service.number == 0
        assert route.stats.dial_failures.total() == 0
        assert route.events("dial_failed") == []


async def test_with_dial_on_data_the_first_byte_reaches_the_target(choice: PumpChoice) -> None:
    service = Dials()
    async with serving(Policy(dial_on_data=True), service=service, choice=choice) as route:
        async with route.connect() as client:
            await until(lambda: route.stats.live)
            assert service.number == 0
            await client.send_all(b"first")
            await client.send_eof()
            assert b"".join([data async for data in client]) == b"first"
        await route.closed("finished")


async def test_with_dial_on_data_a_silent_client_ends_by_idle_timeout() -> None:
    service = Dials()
    policy = Policy(dial_on_data=True, idle_timeout=0.05)
    async with serving(policy, service=service) as route:
        with trio.fail_after(PATIENCE):
            assert await ends_by_reset(route.connect())
        await route.closed("idle_timeout")
        assert service.number == 0


async def test_with_dial_on_data_a_silent_client_can_be_killed() -> None:
    async with serving(Policy(dial_on_data=True)) as route, route.connect() as client:
        await until(lambda: [one for one in route.stats.live if one.dialling])
        [connection] = route.stats.live
        connection.end("killed")
        assert await ends_by_reset(client)
        await route.closed("killed")
