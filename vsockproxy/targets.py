"""How a route reaches its target.

Owns: `Targets`, one for each route. Between the relay, which wants a connected socket, and
the transport, which dials one address once. Knows nothing of bytes, pumps or admission.
"""

from __future__ import annotations

import socket

import trio

from vsockproxy.endpoint import Dialable, GuestEndpoint
from vsockproxy.errors import DialError
from vsockproxy.guests.directory import Guests
from vsockproxy.route import Route
from vsockproxy.sockopt import target_options
from vsockproxy.stats import Connection
from vsockproxy.transport import dial, dial_at_once


class Targets:
    """The way to one route's target; `adopt` follows a reload."""

    def __init__(self, route: Route, guests: Guests) -> None:
        self._guests = guests
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
        if isinstance(self._target, GuestEndpoint):
            return await self._connect_guest(self._target, connection)
        return await self._dial(self._target, self._timeout, connection)

    async def _connect_guest(self, target: GuestEndpoint, connection: Connection) -> socket.socket:
        """Dial where the guest is; once more where it turns out to have moved."""
        deadline = trio.current_time() + self._timeout
        address = await self._guests.resolve(target, deadline)
        try:
            return await self._dial(address, deadline - trio.current_time(), connection)
        except DialError:
            self._guests.forget(target.guest)
            if trio.current_time() >= deadline:
                raise
            moved = await self._guests.resolve(target, deadline)
            if moved == address:
                raise
        return await self._dial(moved, deadline - trio.current_time(), connection)

    async def _dial(
        self, address: Dialable, timeout: float, connection: Connection
    ) -> socket.socket:
        return await dial(
            address,
            timeout,
            options=self._options,
            handshake_timeout=self._handshake_timeout,
            destinations=self._destinations,
            assigned=connection.assign,
        )
