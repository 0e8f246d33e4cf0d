"""Guests that connect to the host through their VMM's socket, under the policies of a route."""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from tests.dial.fake_vmm import Vmm
from tests.fake_services import (
    ORDINARY_USER,
    as_ordinary_user,
    echo_or_nothing,
    full_unix_listener,
    open_folder,
)
from tests.listen.running_route import Served, serving
from tests.waiting import PATIENCE, until
from vsockproxy.address.endpoint import MuxEndpoint, UnixEndpoint
from vsockproxy.config.access import UserRule
from vsockproxy.config.settings import Policy

PORT = 52
MANY = 300
OURS = UserRule(os.geteuid())


@asynccontextmanager
async def host_service(folder: Path, policy: Policy) -> AsyncIterator[tuple[Vmm, Served]]:
    """A VMM's guest, and an echo service of the host behind host port 52."""
    vmm = Vmm(folder / "v.sock", {})
    endpoint = MuxEndpoint(str(vmm.path), PORT)
    async with serving(policy, listen_at=endpoint) as route:
        yield vmm, route


async def exchange(vmm: Vmm) -> bytes:
    return await echo_or_nothing(await vmm.guest_connects(PORT))


async def test_a_guest_reaches_a_host_service_without_a_handshake(tmp_path: Path) -> None:
    async with host_service(tmp_path, Policy()) as (vmm, route):
        assert await exchange(vmm) == b"x"
        await route.closed("finished")


async def test_a_host_port_without_a_listener_is_refused(tmp_path: Path) -> None:
    async with host_service(tmp_path, Policy()) as (vmm, _):
        with pytest.raises(FileNotFoundError):
            await vmm.guest_connects(PORT + 1)


async def test_many_clients_are_accepted_although_the_target_accepts_none(tmp_path: Path) -> None:
    """A VMM has one thread: a connect that blocks on a full backlog would stop it."""
    vmm = Vmm(tmp_path / "v.sock", {})
    endpoint = MuxEndpoint(str(vmm.path), PORT)
    with full_unix_listener(tmp_path / "full"):
        full = UnixEndpoint(str(tmp_path / "full"))
        policy = Policy(connect_timeout=PATIENCE * 10)
        async with (
            serving(policy, listen_at=endpoint, dial_to=full) as route,
            AsyncExitStack() as guests,
        ):
            for _ in range(MANY):
                await guests.enter_async_context(await vmm.guest_connects(PORT))
            await until(lambda: len(route.stats.live) >= MANY)


async def test_guests_over_the_limit_are_queued_without_blocking_their_vmm(tmp_path: Path) -> None:
    async with (
        host_service(tmp_path, Policy(max_connections=1)) as (vmm, route),
        AsyncExitStack() as guests,
    ):
        first = await vmm.guest_connects(PORT)
        await first.send_all(b"x")
        assert await first.receive_some() == b"x"
        waiting = [
            await guests.enter_async_context(await vmm.guest_connects(PORT)) for _ in range(MANY)
        ]
        await waiting[0].send_all(b"x")
        await route.queues("max_connections")
        await first.aclose()
        assert await waiting[0].receive_some() == b"x"


async def test_guests_over_the_limit_are_rejected_by_the_policy_reject(tmp_path: Path) -> None:
    policy = Policy(max_connections=1, over_limit="reject")
    async with host_service(tmp_path, policy) as (vmm, route), await vmm.guest_connects(PORT) as it:
        await it.send_all(b"x")
        assert await it.receive_some() == b"x"
        assert await exchange(vmm) == b""
        await route.rejected("max_connections")


async def test_access_rules_match_a_vmm_by_its_user(tmp_path: Path) -> None:
    async with host_service(tmp_path, Policy(allow=(OURS,))) as (vmm, route):
        assert await exchange(vmm) == b"x"
        route.reconfigure(Policy(deny=(OURS,)))
        assert await exchange(vmm) == b""
        await route.rejected("denied")
        route.reconfigure(Policy(max_connections_per_source=1))
        async with await vmm.guest_connects(PORT) as first:
            await first.send_all(b"x")
            assert await first.receive_some() == b"x"
            assert await exchange(vmm) == b""
        await route.rejected("max_connections_per_source")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
async def test_a_vmm_of_another_user_connects_if_the_sockets_mode_allows() -> None:
    with open_folder() as folder:
        async with host_service(folder, Policy(mode=0o600)) as (vmm, route):
            with as_ordinary_user(), pytest.raises(PermissionError):
                await vmm.guest_connects(PORT)
            route.reconfigure(Policy(mode=0o660, owner=ORDINARY_USER))
            with as_ordinary_user():
                guest = await vmm.guest_connects(PORT)
            await guest.aclose()
            found = (folder / "v.sock_52").stat()
            assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (ORDINARY_USER, 0o660)
