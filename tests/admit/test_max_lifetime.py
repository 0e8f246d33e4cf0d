"""`max_lifetime`: connections ended a time after their accept."""

from __future__ import annotations

from tests.fake_services import hold
from tests.listen.running_route import serving
from tests.sockets import ends_by_reset
from tests.waiting import until
from vsockproxy.config.settings import Policy, PumpChoice


async def test_max_lifetime_ends_a_connection(choice: PumpChoice) -> None:
    async with serving(Policy(max_lifetime=0.1), choice=choice) as route:
        client = await route.live()
        assert await ends_by_reset(client)
        await route.closed("max_lifetime")


async def test_a_long_max_lifetime_changes_nothing() -> None:
    async with serving(Policy(max_lifetime=60.0)) as route:
        assert await route.exchange(b"x" * 100_000) == b"x" * 100_000
        await route.closed("finished")


async def test_a_reloaded_max_lifetime_holds_for_new_connections_alone() -> None:
    async with serving(Policy(), service=hold) as route:
        old = route.connect()
        await until(lambda: route.stats.live)
        route.reconfigure(Policy(max_lifetime=0.05))
        assert await ends_by_reset(route.connect())
        await route.closed("max_lifetime")
        assert len(route.stats.live) == 1
        await old.aclose()
