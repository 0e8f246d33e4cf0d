"""All routes together: bind, say ready, drain, stop.

Owns: `Supervisor`, the one nursery under which everything runs.  Every listener is bound
before anything is served, so a daemon that is ready has all of its ports and one that
cannot have them leaves nothing behind.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import count
from typing import Any, Final

import trio

from vsockproxy import __version__
from vsockproxy.endpoint import ListenEndpoint
from vsockproxy.errors import ListenError
from vsockproxy.listener import RouteListener
from vsockproxy.log import get_logger
from vsockproxy.pump import open_pump
from vsockproxy.route import Config
from vsockproxy.stats import RouteStats
from vsockproxy.transfer import Pump
from vsockproxy.transport import ListeningSocket, listen

_METRICS_BACKLOG: Final = 128  # scrapers are few


class Supervisor:
    """Runs a configuration from its first listener to its last connection."""

    def __init__(
        self, config: Config, *, inherited: Mapping[str, Sequence[socket.socket]] | None = None
    ) -> None:
        """``inherited`` are the sockets that systemd handed in, by name."""
        self.config = config
        self.listeners: list[RouteListener] = []
        self._inherited = inherited or {}
        self._log: Any = get_logger()
        self._stops = 0

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> bool:
        """Serve until `stop`; True when every connection ended by itself.

        ``task_status`` is started when every listener, the metrics one included, is
        bound.  Raises `ListenError`, naming the route, when one cannot be; nothing stays
        open then.
        """
        async with open_pump(self.config.pump) as pump:
            self._log.info("pump", pump=pump.name, why=pump.why)
            with ExitStack() as opened:
                drained = await self._serve(pump, self._bind(pump, opened), task_status)
        self._log.info("stopped", drained=drained)
        return drained

    def stop(self) -> None:
        """Drain at the first call, end every connection at the second."""
        self._stops += 1
        live = sum(len(listener.stats.live) for listener in self.listeners)
        self._log.info("draining" if self._stops == 1 else "ending", connections=live)
        self._tell_listeners()

    def _tell_listeners(self) -> None:
        for listener in self.listeners:
            if self._stops == 1:
                listener.stop()
            elif self._stops:
                listener.end()

    def stats(self) -> list[RouteStats]:
        """The counters of every route, in the order of the configuration."""
        return [listener.stats for listener in self.listeners]

    def _bind(self, pump: Pump, opened: ExitStack) -> list[ListeningSocket]:
        """Open every listener, to be closed with ``opened``; the metrics' are returned."""
        numbers = count(1)
        for route in self.config.routes:
            sockets = self._listen(
                f"route {route.name}", route.listen, route.policy.backlog, opened
            )
            self.listeners.append(RouteListener(route, sockets, pump, numbers, self._log))
        if self.config.metrics is None:
            return []
        return self._listen("metrics", self.config.metrics, _METRICS_BACKLOG, opened)

    def _listen(
        self, owner: str, endpoint: ListenEndpoint, backlog: int, opened: ExitStack
    ) -> list[ListeningSocket]:
        try:
            sockets = listen(endpoint, backlog, self._inherited)
        except ListenError as error:
            error.add_note(owner)
            raise
        for listening in sockets:
            opened.callback(listening.close)
            self._log.debug("listening", owner=owner, listen=str(listening.endpoint))
        return sockets

    async def _serve(
        self, pump: Pump, metrics: list[ListeningSocket], task_status: trio.TaskStatus[None]
    ) -> bool:
        async with trio.open_nursery() as nursery:
            if metrics:
                await nursery.start(self._serve_metrics, metrics, pump)
            self._log.info("ready", routes=len(self.listeners), config=self.config.source)
            task_status.started()
            drained = await self._serve_routes()
            nursery.cancel_scope.cancel()
        return drained

    async def _serve_routes(self) -> bool:
        """Serve every route until all have ended; True when none was cut off."""
        self._tell_listeners()  # of a stop that came before there were any
        results: list[bool] = []

        async def serve(listener: RouteListener) -> None:
            results.append(await listener.serve())

        async with trio.open_nursery() as routes:
            for listener in self.listeners:
                routes.start_soon(serve, listener)
        return all(results)

    async def _serve_metrics(
        self,
        sockets: list[ListeningSocket],
        pump: Pump,
        *,
        task_status: trio.TaskStatus[None],
    ) -> None:
        # Imported here: a daemon without a metrics endpoint needs neither.
        from vsockproxy.admin import serve_metrics  # noqa: PLC0415 - see above
        from vsockproxy.metrics import make_registry  # noqa: PLC0415 - see above

        registry = make_registry(self.stats, __version__, pump.name)
        await serve_metrics(
            [listening.sock for listening in sockets], registry, task_status=task_status
        )
