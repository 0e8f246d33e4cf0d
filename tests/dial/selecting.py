"""Policies, endpoints and helpers that the tests of `Selection` share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import trio

from tests.listen.running_route import Served
from tests.sockets import read_to_end
from tests.waiting import PATIENCE
from vsockproxy.address.endpoint import (
    MuxEndpoint,
)
from vsockproxy.config.settings import Policy

PLAIN = Policy(half_close="forward")  # this VMM honours it
WAIT = replace(PLAIN, wait_for_guest=PATIENCE, handshake_timeout=0.1)


def guest_at(folder: Path, name: str = "guest") -> MuxEndpoint:
    """Return the endpoint of a guest behind a VMM's socket in a folder."""
    return MuxEndpoint(str(folder / name), 80)


def state_of(route: Served, number: int = 0) -> str:
    """Return the state of a route's target."""
    return route.stats.targets[number].name


async def question(client: trio.SocketStream) -> bytes:
    """Send a request and a FIN; return the answer."""
    await client.send_all(b"request")
    await client.send_eof()
    return await read_to_end(client)


def with_targets(route: Served, *targets: MuxEndpoint, policy: Policy | None = None) -> None:
    """Reload a route with other targets, and another policy if there is one."""
    was = route.listener.route
    route.listener.reconfigure(
        replace(was, target=targets[0], others=targets[1:], policy=policy or was.policy)
    )
