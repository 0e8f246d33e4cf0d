"""How a route reaches its target.

Owns: `Targets`, one for each route. Between the relay, which wants a connected socket, and
the transport, which dials one address once. Knows nothing of bytes, pumps or admission.
"""

from __future__ import annotations

import socket

from vsockproxy.endpoint import GuestEndpoint
from vsockproxy.route import Route
from vsockproxy.sockopt import target_options
from vsockproxy.stats import Connection
from vsockproxy.transport import dial, dial_at_once


class Targets:
    """The way to one route's target; `adopt` follows a reload."""

    def __init__(self, route: Route) -> None:
        self.adopt(route)

    def adopt(self, route: Route) -> None:
        """Reach the target of ``route``, as its policy says, from now on."""
        self._target = route.target
        self._timeout = route.policy.connect_timeout
        self._handshake_timeout = route.policy.handshake_timeout
        self._options = target_options(route.policy)
        self._destinations = route.policy.destinations

    def connect_at_once(self) -> socket.socket | None:
        """A connected socket where that takes no waiting, else None; raises `DialError`."""
        return dial_at_once(self._target)

    async def connect(self, connection: Connection) -> socket.socket:
        """A socket connected to the target, for ``connection``; the caller's to close.

        Raises `DialError`.
        """
        assert not isinstance(self._target, GuestEndpoint)  # every way of today is static
        return await dial(
            self._target,
            self._timeout,
            options=self._options,
            handshake_timeout=self._handshake_timeout,
            destinations=self._destinations,
            assigned=connection.assign,
        )
