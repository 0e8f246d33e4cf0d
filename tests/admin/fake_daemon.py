"""A fake daemon for the metrics, the health paths and the API's lists."""

from __future__ import annotations

import math
from collections.abc import Sequence
from time import time

import trio

from vsockproxy.admin.probes import index
from vsockproxy.admit.process_limits import Admission
from vsockproxy.config.added import Added
from vsockproxy.config.settings import Config
from vsockproxy.guests.directory import Guests
from vsockproxy.http.message import Request, Response
from vsockproxy.log.recent import RecentEvents
from vsockproxy.stats import Reloads, RouteState, RouteStats


async def no_page(_request: Request) -> Response:
    """Answer as where the status page is not served."""
    return index("not served")


class FakeRoutes:
    """A supervisor whose routes have only counters."""

    def __init__(self, stats: Sequence[RouteStats], admission: Admission, guests: Guests) -> None:
        self.admission = admission
        self.guests = guests
        self._stats = stats

    def stats(self) -> Sequence[RouteStats]:
        """Return the counters of the routes."""
        return self._stats

    def state_of(self, _stats: RouteStats) -> RouteState:
        """Return that a route listens."""
        return "listening"

    def closed_by(self, _stats: RouteStats) -> None:
        """Return that a route accepts clients."""

    def queued_by(self, _stats: RouteStats) -> None:
        """Return that no limit queues clients."""

    def live(self) -> int:
        """Return the number of open connections."""
        return sum(len(stats.live) for stats in self._stats)

    def not_direct(self, _stats: RouteStats) -> None:
        """Return that a route is direct."""


class FakeDaemon:
    """A daemon whose counters and answers a test chooses.

    Args:
      stats: the counters of each route.
      not_ready: what `not_ready` returns.
      unreachable: names of the routes whose dials fail.
      hung: whether `alive` and `reach` block until they are cancelled.
      admission: the limits; by default none.
      guests: the directory of guests; by default empty.

    Attributes:
      dialled: names of the dialled routes, in order.
      dialling: number of dials in progress.
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
        self.config = Config(tuple(one.route for one in stats))
        self.added = Added()
        self.reloads = Reloads(self.config)
        self.events = RecentEvents()
        self.started = time()
        self._not_ready = not_ready
        self._unreachable = unreachable
        self._hung = hung
        self.dialled: list[str] = []
        self.dialling = 0

    def not_ready(self) -> list[str]:
        """Return the reasons why the daemon is not ready."""
        return list(self._not_ready)

    async def alive(self) -> None:
        """Return at once; a hung daemon blocks until it is cancelled."""
        await trio.sleep(math.inf if self._hung else 0)

    def closed_routes(self) -> list[str]:
        """Return that every route accepts clients."""
        return []

    def accepts(self, _name: str) -> None:
        """Return that a route accepts clients."""

    async def reach(self, name: str) -> str | None:
        """Record a dial of a route; return its error, or None if it succeeds."""
        self.dialled.append(name)
        self.dialling += 1
        try:
            await trio.sleep(math.inf if self._hung else 0)
        finally:
            self.dialling -= 1
        return "nothing listens there" if name in self._unreachable else None
