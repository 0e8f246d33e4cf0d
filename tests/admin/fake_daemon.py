"""A fake of the daemon, for the metrics and the health paths."""

from __future__ import annotations

import math
from collections.abc import Sequence

import trio

from vsockproxy.admit.admission import Admission
from vsockproxy.config.settings import Config
from vsockproxy.guests.directory import Guests
from vsockproxy.stats import Reloads, RouteStats


class FakeRoutes:
    """Routes that only have counters."""

    def __init__(self, stats: Sequence[RouteStats], admission: Admission, guests: Guests) -> None:
        self.admission = admission
        self.guests = guests
        self._stats = stats

    def stats(self) -> Sequence[RouteStats]:
        """Return the counters of the routes."""
        return self._stats


class FakeDaemon:
    """A daemon with the counters and the answers that a test gives it.

    ``unreachable`` are the routes whose target cannot be dialled; a hung daemon never is alive,
    and its dials never end.

    Attributes:
      dialled: the routes whose targets were dialled, in order.
      dialling: how many dials are under way.
    """

    def __init__(
        self,
        *stats: RouteStats,
        not_ready: Sequence[str] = (),
        unreachable: Sequence[str] = (),
        hung: bool = False,
        admission: Admission | None = None,
        guests: Guests | None = None,
    ) -> None:
        self.pump_name = "native"
        self.supervisor = FakeRoutes(stats, admission or Admission(), guests or Guests())
        self.reloads = Reloads(Config(tuple(one.route for one in stats)))
        self._not_ready = not_ready
        self._unreachable = unreachable
        self._hung = hung
        self.dialled: list[str] = []
        self.dialling = 0

    def not_ready(self) -> list[str]:
        """Return why it is not ready."""
        return list(self._not_ready)

    async def alive(self) -> None:
        """Return at once, or never."""
        await trio.sleep(math.inf if self._hung else 0)

    async def reach(self, name: str) -> str | None:
        """Return why a route's target cannot be dialled."""
        self.dialled.append(name)
        self.dialling += 1
        try:
            await trio.sleep(math.inf if self._hung else 0)
        finally:
            self.dialling -= 1
        return "nothing listens there" if name in self._unreachable else None
