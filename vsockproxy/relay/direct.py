"""A direct route at work: the pump accepts, dials and relays its clients.

Owns: `DirectRelays`, one for each route: when the pump may accept, by which configuration, and the
end of its connections, which have no task.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio

from vsockproxy.admit.gate import Gate
from vsockproxy.config.direct import why_not_direct
from vsockproxy.config.settings import Route
from vsockproxy.dial.direct_target import direct_target_of
from vsockproxy.pump.transfer import Bounds, EndReason, Pump
from vsockproxy.relay.direct_clients import DirectClients, OpenConnections

_PORTABLE: Final = "the portable pump runs"


class DirectRelays:
    """Serve the clients of one route for which nothing needs a decision.

    Attributes:
      why_not: why the route is not direct, in words; None where it is.
    """

    def __init__(
        self, gate: Gate, pump: Pump, clients: Callable[[Route, OpenConnections], DirectClients]
    ) -> None:
        """Prepare for `reconfigure`; ``clients`` makes those of one configuration."""
        self.why_not: str | None = _PORTABLE
        self._gate = gate
        self._route = pump.route()
        self._make_clients = clients
        self._connections = OpenConnections()
        self._serving: set[trio.CancelScope] = set()
        self._is_paused = False
        if self._route is not None and pump.limit is not None:
            gate.share(self._route.limit, pump.limit)

    def reconfigure(self, route: Route, bounds: Bounds) -> None:
        """Treat new connections as ``route`` says; live ones end as they began."""
        self._stop()
        if self._route is None:
            return
        self.why_not = why_not_direct(route)
        if self.why_not is None:
            self._target = direct_target_of(route, bounds)
            self._clients = self._make_clients(route, self._connections)

    def pause(self) -> None:
        """Have the pump accept no more until `resume`, from the return of this call on."""
        self._is_paused = True
        self._stop()

    def resume(self) -> None:
        """Let the pump accept again."""
        self._is_paused = False

    def _stop(self) -> None:
        """End every `serve`, which begins again by the present configuration if it may."""
        for scope in self._serving:
            scope.cancel()

    async def serve(self, listener: int) -> OSError | None:
        """Have the pump accept at a listening socket for as long as it may.

        ``listener`` is its descriptor. Returns None when the route is not direct, is paused, or is
        near a limit, where its clients are accepted one by one; else the error of accept(2).
        """
        while self._may_serve():
            try:
                await self._serve(listener)
            except OSError as error:
                return error
            await trio.lowlevel.checkpoint()
        return None

    async def _serve(self, listener: int) -> None:
        assert self._route is not None
        with trio.CancelScope() as scope:
            self._serving.add(scope)
            try:
                await self._route.serve(listener, self._target, self._clients)
            finally:
                self._serving.discard(scope)

    def _may_serve(self) -> bool:
        is_over = self._is_paused or self._connections.is_ending
        return self.why_not is None and not is_over and self._gate.is_far()

    # ---- the end ----

    def name_endings(self, reason: EndReason) -> None:
        """Count connections that the pump has not reported yet under ``reason``, if cancelled."""
        self._connections.ending = reason

    async def outlast(self) -> None:
        """Return once every connection has ended; nothing may accept any more.

        Cancelled, it ends the connections first, as a task does that awaits a transfer.
        """
        if self._route is None:
            return
        try:
            await self._route.outlast()
        except trio.Cancelled:
            self._connections.end_all()
            with trio.CancelScope(shield=True):
                await self._route.outlast()
            raise
        finally:
            self._route.close()
