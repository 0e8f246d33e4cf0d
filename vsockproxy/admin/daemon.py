"""What the API asks of the daemon, so that the admin folder does not know the daemon's.

Owns: the interfaces alone. Everything in them is called in the thread of the event loop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from vsockproxy.address.endpoint import ListenEndpoint
from vsockproxy.admit.admission import Admission
from vsockproxy.config.settings import Config
from vsockproxy.guests.directory import Guests
from vsockproxy.listen.listener import RouteListener
from vsockproxy.log.recent import Events
from vsockproxy.stats import Reloads, RouteState, RouteStats


class Routes(Protocol):
    """The routes at work."""

    @property
    def listeners(self) -> Mapping[ListenEndpoint, RouteListener]:
        """The routes that accept, by their endpoints."""
        ...

    @property
    def admission(self) -> Admission:
        """The limits that all routes share."""
        ...

    @property
    def guests(self) -> Guests:
        """Where guests are."""
        ...

    def stats(self) -> Sequence[RouteStats]:
        """Return the counters of every route, those that still drain included."""
        ...

    def state_of(self, stats: RouteStats) -> RouteState:
        """Return what a route does now."""
        ...


class Daemon(Protocol):
    """A daemon that runs.

    Attributes:
      config: the configuration that runs now.
      started: when the daemon was made, in seconds of the epoch.
      reloads: how reloading went so far.
      events: the recent failures and changes.
    """

    config: Config
    started: float
    reloads: Reloads
    events: Events

    @property
    def supervisor(self) -> Routes:
        """The routes at work."""
        ...

    @property
    def pump_name(self) -> str:
        """``native`` or ``portable``."""
        ...

    def not_ready(self) -> list[str]:
        """Return what keeps the daemon from being ready, a sentence each."""
        ...

    async def alive(self) -> None:
        """Return once every pump thread has answered; the caller bounds the time."""
        ...

    async def reach(self, name: str) -> str | None:
        """Dial a route's target and hang up; return why that fails, or None."""
        ...

    async def reload(self) -> list[str]:
        """Reload as SIGHUP does; return the problems that keep the configuration from running."""
        ...

    def pause(self, name: str) -> None:
        """Leave a route's clients in the backlog until `resume`."""
        ...

    async def drain(self, name: str) -> None:
        """Close a route's listener; its connections go on."""
        ...

    async def resume(self, name: str) -> None:
        """Have a route accept again; raises `ListenError`."""
        ...
