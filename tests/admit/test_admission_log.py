"""The log lines of limits: one in ten seconds, with the number left out."""

from __future__ import annotations

import pytest
from trio.testing import MockClock

from tests.listen.running_route import Served, serving
from tests.sockets import ends_by_reset
from vsockproxy.config.settings import Policy


async def test_rejections_are_logged_at_a_bounded_rate() -> None:
    async with (
        serving(Policy(max_connections=1, over_limit="reject")) as route,
        await route.live(),
    ):
        for number in range(20):
            assert await ends_by_reset(route.connect())
            await route.rejected("max_connections", number + 1)
        [line] = route.events("client_rejected")
        assert line["reason"] == "max_connections"
        assert line["left_out"] == 0
        assert str(line["client"]).startswith("127.0.0.1:")
        assert "max_connections" in str(line["why"])


async def test_the_next_rejection_logged_has_the_number_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = MockClock()
    monkeypatch.setattr("vsockproxy.log.output.monotonic", clock.current_time)
    async with (
        serving(Policy(max_connections=1, over_limit="reject")) as route,
        await route.live(),
    ):
        for number in range(5):
            assert await ends_by_reset(route.connect())
            await route.rejected("max_connections", number + 1)
        clock.jump(60)
        assert await ends_by_reset(route.connect())
        await route.rejected("max_connections", 6)
        assert [line["left_out"] for line in route.events("client_rejected")] == [0, 4]


def names(route: Served) -> set[str]:
    """Return the events that a route has logged."""
    return {str(call.args[0]) for call in route.log.calls}


async def test_a_route_without_limits_logs_no_queueing() -> None:
    async with serving(Policy()) as route:
        assert await route.exchange(b"x") == b"x"
        await route.closed("finished")
        assert names(route) == {"connection_closed"}
