"""One connection from start to end: dial, transfer, account, log.

Owns: `Relay`, whose `serve` is one trio task a connection, and the only catch-all of the
program: whatever goes wrong in one connection stays in it.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from time import monotonic
from typing import Any

from vsockproxy.errors import DialError
from vsockproxy.stats import Connection, RouteStats
from vsockproxy.transfer import ENDINGS, Bounds, Pump
from vsockproxy.transport import abort, dial


@dataclass(frozen=True, slots=True)
class Relay:
    """What every connection of one route needs."""

    stats: RouteStats
    pump: Pump
    bounds: Bounds
    log: Any

    async def serve(self, client: socket.socket, connection: Connection) -> None:
        """Serve one accepted client until its end; owns ``client`` from the call on.

        The client is reset when the target cannot be dialled, so that it does not take
        the failure for an empty answer.  Cancelled, both sides are closed and the
        connection is counted under ``connection.ending``.  Raises nothing but
        `trio.Cancelled`.
        """
        self.stats.open(connection)
        reason = "error"
        try:
            reason = await self._relay(client, connection)
        except Exception:
            abort(client)
            self.log.exception("connection_failed", **connection.names())
        except BaseException:  # cancelled: alone, or in the group that a nursery makes of it
            abort(client)
            reason = connection.ending
            raise
        finally:
            self.stats.close(connection, reason)
            if connection.route.policy.access_log:
                self._log_end(connection, reason)

    async def _relay(self, client: socket.socket, connection: Connection) -> str:
        """Dial and transfer: how the connection ended, ``dial_<reason>`` if it never began."""
        route = connection.route
        started = monotonic()
        try:
            target = await dial(route.target, route.policy.connect_timeout)
        except DialError as error:
            abort(client)
            self.stats.dial_failures[error.reason] += 1
            self.log.warning(
                "dial_failed", **connection.names(), reason=error.reason, error=str(error)
            )
            return f"dial_{error.reason}"
        connection.dial_seconds = monotonic() - started
        self.stats.dial_seconds.observe(connection.dial_seconds)
        transfer = await self.pump.transfer(client, target, self.bounds, connection.meter)
        return transfer.reason

    def _log_end(self, connection: Connection, reason: str) -> None:
        """The access line: one for every connection, at its end."""
        words = {"why": ENDINGS[reason]} if reason in ENDINGS else {}
        self.log.info(
            "connection",
            **connection.names(),
            upstream_bytes=connection.meter.upstream_bytes,
            downstream_bytes=connection.meter.downstream_bytes,
            seconds=round(monotonic() - connection.opened, 6),
            dial_seconds=connection.dial_seconds and round(connection.dial_seconds, 6),
            reason=reason,
            **words,
        )
