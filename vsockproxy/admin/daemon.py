"""What the API asks of the daemon, so that it need not know the supervisor.

Owns: the interface alone.
"""

from __future__ import annotations

from typing import Protocol

from vsockproxy.address.endpoint import ListenEndpoint
from vsockproxy.admit.admission import Admission
from vsockproxy.config.settings import Config
from vsockproxy.guests.directory import Guests
from vsockproxy.listen.listener import RouteListener
from vsockproxy.log.recent import Events
from vsockproxy.stats import Reloads, RouteState, RouteStats


class Daemon(Protocol):
    """A daemon that runs; everything is called in the thread of its event loop."""

    config: Config
    listeners: dict[ListenEndpoint, RouteListener]
    reloads: Reloads
    admission: Admission
    events: Events
    guests: Guests
    started: float
    """In seconds of the epoch."""

    @property
    def pump_name(self) -> str:
        """What moves the bytes."""
        ...

    def stats(self) -> list[RouteStats]:
        """The counters of every route, those that still drain included."""
        ...

    def not_ready(self) -> list[str]:
        """What keeps it from being ready, in words."""
        ...

    async def alive(self) -> None:
        """Return once everything that moves bytes has shown that it goes on."""
        ...

    async def reach(self, name: str) -> str | None:
        """Why the target of a route cannot be dialled, if it cannot."""
        ...

    def state_of(self, stats: RouteStats) -> RouteState:
        """What a route does now."""
        ...

    def pause(self, name: str) -> None:
        """Have a route accept no more for now."""
        ...

    async def drain(self, name: str) -> None:
        """Close a route's listener; its connections go on."""
        ...

    async def resume(self, name: str) -> None:
        """Have a route accept again; raises `ListenError`."""
        ...

    async def reload_as_asked(self) -> list[str]:
        """Reload as SIGHUP does; what is wrong, if the configuration is not taken."""
        ...
