"""The interface of the daemon that its HTTP servers use, so that they need not know `daemon`.

Everything is called in the thread of the daemon's event loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from vsockproxy.admit.gate import QueueReason
from vsockproxy.config.added import Added, Kind, Table
from vsockproxy.config.changes import Changes
from vsockproxy.config.settings import Config
from vsockproxy.log.recent import RecentEvents
from vsockproxy.metrics import MetricsSource, RoutesSource
from vsockproxy.stats import RouteStats


class Health(Protocol):
    """Whether a daemon works."""

    def not_ready(self) -> list[str]:
        """Return why the daemon is not ready, a sentence each; empty if it is."""
        ...

    async def alive(self) -> None:
        """Return once every thread of the pump has answered, and all counters are up to date."""
        ...

    def closed_routes(self) -> list[str]:
        """Return a sentence for each route that accepts no clients though nothing failed."""
        ...

    def accepts(self, name: str) -> str | None:
        """Return why a route accepts no clients, or None where it does."""
        ...

    async def reach(self, name: str) -> str | None:
        """Dial the target of a route that accepts; return why it was not reached, or None."""
        ...


class Routes(RoutesSource, Protocol):
    """The routes at work."""

    def live(self) -> int:
        """Return how many connections are open."""
        ...

    def stats(self) -> Sequence[RouteStats]:
        """Return the counters of every route, draining ones included."""
        ...

    def closed_by(self, stats: RouteStats) -> str | None:
        """Return why a route accepts no clients, and what to do; None where it does."""
        ...

    def not_direct(self, stats: RouteStats) -> str | None:
        """Return why a route is not direct (`config.direct`), in words; None where it is."""
        ...

    def queued_by(self, stats: RouteStats) -> QueueReason | None:
        """Return the limit that queues the clients of a route, or None."""
        ...


class Entries(Protocol):
    """Routes and guests that are added at run time, as `daemon.change.Changing` has them.

    Each raises `OrderError`, `ConfigError` or `ListenError`, and then nothing has changed.
    """

    async def add(self, kind: Kind, name: str, table: Table, *, persist: bool) -> Changes:
        """Add a route or a guest."""
        ...

    async def replace(self, kind: Kind, name: str, table: Table) -> Changes:
        """Replace what was added."""
        ...

    async def remove(self, kind: Kind, name: str) -> Changes:
        """Remove what was added."""
        ...


class Daemon(Health, MetricsSource, Protocol):
    """A running daemon: its state, and what an operator can change.

    Attributes:
      config: the running configuration.
      added: what of it was added at run time.
      events: the recent events of the log.
      started: when the daemon started, in seconds of the epoch.
    """

    config: Config
    added: Added
    events: RecentEvents
    started: float

    @property
    def supervisor(self) -> Routes:
        """The routes at work."""
        ...

    @property
    def changing_entries(self) -> Entries:
        """Adds, replaces and removes routes and guests."""
        ...

    async def pause(self, name: str) -> None:
        """Stop accepting on a route: clients are queued in the backlog; raises `OrderError`."""
        ...

    async def drain(self, name: str) -> None:
        """Close a route's listener, its live connections go on; raises `OrderError`."""
        ...

    async def resume(self, name: str) -> None:
        """Accept again on a paused or drained route; raises `OrderError` or `ListenError`."""
        ...

    async def reload(self) -> Changes:
        """Reload as SIGHUP does; return what has changed; raises `OrderError`."""
        ...

    async def preview_reload(self) -> Changes:
        """Return what a reload would change; raises `OrderError`."""
        ...
