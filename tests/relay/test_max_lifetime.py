"""`max_lifetime` counts from the accept: the header, the dial and holding are part of it."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from tests.fake_services import hold
from tests.listen.running_route import serving
from tests.sockets import ends_by_reset, tcp_pair
from tests.waiting import PATIENCE
from vsockproxy.address.endpoint import UnixEndpoint
from vsockproxy.config.access import parse_rule
from vsockproxy.config.settings import Policy, PumpChoice
from vsockproxy.connection import Connection

LOOPBACK = (parse_rule("127.0.0.1"),)
LONG = 3600.0


async def test_max_lifetime_ends_the_wait_for_a_header() -> None:
    policy = Policy(
        accept_proxy=True, proxy_trusted=LOOPBACK, connect_timeout=LONG, max_lifetime=0.1
    )
    async with serving(policy) as route:
        with trio.fail_after(PATIENCE):
            assert await ends_by_reset(route.connect())
        await route.closed("max_lifetime")
        assert not route.stats.rejected


@pytest.mark.parametrize("hold_for", [None, LONG])
async def test_max_lifetime_ends_a_dial_and_the_wait_for_a_guest(
    tmp_path: Path, hold_for: float | None
) -> None:
    full = UnixEndpoint(str(tmp_path / "full"))
    policy = Policy(connect_timeout=LONG, wait_for_guest=hold_for, max_lifetime=0.1)
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(full.path)
        listener.listen(0)
        first.connect(full.path)
        async with serving(Policy()) as route:
            route.listener.reconfigure(replace(route.listener.route, target=full, policy=policy))
            with trio.fail_after(PATIENCE):
                assert await ends_by_reset(route.connect())
            await route.closed("max_lifetime")


async def test_a_transfer_has_what_is_left_of_max_lifetime(choice: PumpChoice) -> None:
    async with serving(Policy(max_lifetime=LONG), service=hold, choice=choice) as route:
        left, right = tcp_pair()
        connection = Connection(1, route.listener.route, left.family, left.getpeername())
        connection.opened -= LONG - 0.2  # as after a long dial
        route.listener._gate.admit(right.fileno(), connection)
        with trio.fail_after(PATIENCE):
            await route.listener._relay.serve(right.detach(), connection)
        assert route.stats.closed == {"max_lifetime": 1}
        async with trio.SocketStream(trio.socket.from_stdlib_socket(left)) as client:
            assert await ends_by_reset(client)
