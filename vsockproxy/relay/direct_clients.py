"""The connections that the pump accepts, dials and relays, as an operator sees them.

Owns: `DirectClients`, which counts and logs them as `relay` does those that have a task.  A
connection that is over before the pump tells of it is only counted, unless it has a log line.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast

from vsockproxy.address.endpoint import Dialable, MuxEndpoint
from vsockproxy.admit.gate import Gate
from vsockproxy.config.settings import Route
from vsockproxy.connection import Connection
from vsockproxy.dial.direct_target import error_of
from vsockproxy.dial.mux import await_late_answer
from vsockproxy.dial.selection import Selection
from vsockproxy.pump.direct import Dialled, Ending, Opening, Tally
from vsockproxy.pump.transfer import EndReason, LiveTransfer, Meter
from vsockproxy.relay.access_log import log_end
from vsockproxy.relay.failed_dial_log import FailedDials
from vsockproxy.stats import RouteStats


class OpenConnections:
    """The open connections of a route that the pump has reported.

    Attributes:
      ending: the reason under which they are counted if they are cancelled.
      is_ending: whether each is ended as soon as the pump tells of it.
      failed: when the last dial failed, in seconds of `time.monotonic`.
    """

    def __init__(self) -> None:
        self.ending: EndReason = "shutdown"
        self.is_ending = False
        self.failed = 0.0
        self._live: set[Connection] = set()

    def add(self, connection: Connection, running: LiveTransfer) -> None:
        """Add a connection under way."""
        self._live.add(connection)
        connection.follow(running)
        if self.is_ending:
            connection.end(connection.ending)

    def discard(self, connection: Connection) -> None:
        """Take note that a connection has ended, which may not have been added."""
        self._live.discard(connection)

    def end_all(self) -> None:
        """End every connection, and those that the pump has not reported yet."""
        self.is_ending = True
        for connection in list(self._live):
            connection.end(connection.ending)


@dataclass(frozen=True, slots=True, eq=False)
class DirectClients:
    """The clients of one configuration of a route; see `pump.direct.Clients`.

    None of its methods raises: a defect in one connection affects no other.
    """

    route: Route
    connections: OpenConnections
    stats: RouteStats
    gate: Gate
    selection: Selection
    failed_dials: FailedDials
    numbers: Iterator[int]
    log: Any

    def opened(self, opening: Opening, running: LiveTransfer) -> Meter:
        """Count an open connection, and return it."""
        connection = self._new(opening)
        self.gate.count(connection)
        self.connections.add(connection, running)
        return connection

    def connected(self, meter: Meter, dialled: Dialled) -> None:
        """Count a dial."""
        self._note_dial(cast(Connection, meter), dialled)

    def ended(self, meter: Meter, ending: Ending) -> None:
        """Count and log the end of a connection."""
        self._close(cast(Connection, meter), ending)

    def passed(self, opening: Opening, dialled: Dialled | None, ending: Ending) -> None:
        """Count a connection that is over already."""
        connection = self._new(opening)
        self.gate.count(connection)
        if dialled is not None:
            self._note_dial(connection, dialled)
        connection.settle(ending.upstream_bytes, ending.downstream_bytes)
        self._close(connection, ending)

    def counted(self, tally: Tally) -> None:
        """Count connections that are over already, and have no log line."""
        self.gate.count_tally(tally)
        if tally.connected > self.connections.failed:
            self.selection.note_success(self.route.targets[0])

    def unanswered(self, descriptor: int) -> None:
        """Close a VMM's socket after its answer."""
        await_late_answer(descriptor)

    # ---- what becomes of one ----

    def _new(self, opening: Opening) -> Connection:
        family = int.from_bytes(opening.address[:2], sys.byteorder)
        connection = Connection(next(self.numbers), self.route, family, opening.address)
        connection.opened = opening.opened
        connection.ending = self.connections.ending
        return connection

    def _note_dial(self, connection: Connection, dialled: Dialled) -> None:
        connection.dial_seconds = dialled.seconds
        target = self.route.target
        if isinstance(target, MuxEndpoint) and target.handshake == "ok":
            connection.assign(dialled.vmm_port)
        self._count_dial(dialled)

    def _count_dial(self, dialled: Dialled) -> None:
        self.stats.dial_seconds.observe(dialled.seconds)
        self.selection.note_success(self.route.targets[0])

    def _close(self, connection: Connection, ending: Ending) -> None:
        try:
            reason = self._reason(connection, ending)
        except Exception:  # noqa: BLE001 - `_note_defect` logs it
            reason = self._note_defect(connection)
        try:
            self.gate.uncount(connection, reason, ending.seconds)
            log_end(connection, reason, self.log, ending.seconds)
        except Exception:  # noqa: BLE001 - `_note_defect` logs it
            self._note_defect(connection)
        finally:
            self.connections.discard(connection)

    def _reason(self, connection: Connection, ending: Ending) -> str:
        """Return the reason of an end; a failed dial is counted and logged."""
        if ending.failure is None:
            return connection.ending if ending.reason in ("killed", None) else ending.reason
        self.connections.failed = connection.opened + ending.seconds
        error = error_of(cast(Dialable, self.route.target), ending.failure)
        self.selection.note_failure(self.route.targets[0], error)
        return self.failed_dials.note(connection, error)

    def _note_defect(self, connection: Connection) -> str:
        with suppress(Exception):  # no memory is left, not even for the line
            self.log.exception("connection_error", **connection.names())
        return "error"
