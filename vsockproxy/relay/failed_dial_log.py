"""A failed dial: it is counted, and one line is logged. `relay` resets the client."""

from __future__ import annotations

from dataclasses import dataclass

from vsockproxy.admit.gate import Gate
from vsockproxy.connection import Connection
from vsockproxy.dial.selection import Selection
from vsockproxy.errors import DialError
from vsockproxy.log.output import Throttle
from vsockproxy.stats import RouteStats


@dataclass(frozen=True, slots=True)
class FailedDials:
    """The failed dials of one route."""

    stats: RouteStats
    gate: Gate
    selection: Selection
    throttle: Throttle

    def note(self, connection: Connection, error: DialError) -> str:
        """Count and log a failed dial; return the reason of the connection's end."""
        reason = f"dial_{error.reason}"
        if error.reason == "client_left":
            return reason
        self.stats.dial_failures[error.reason] += 1
        if error.reason == "no_descriptors":
            self.gate.recount()
        self.throttle.warning(
            "dial_failed",
            lambda: connection.names() | self.selection.change_of(connection),
            reason=error.reason,
            error=error.summary,
            remedy=error.remedy,
        )
        return reason
