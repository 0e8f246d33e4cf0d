"""Rates of a daemon's routes and their history, computed from snapshots of its counters.

Owns: `Snapshot`, `Traffic`.  Opens no sockets and draws nothing: the session passes the API's
answers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

Answer = Mapping[str, Any]

HISTORY: Final = 60
"""Number of rates kept for each route, one for each snapshot."""

_EVENTS: Final = 100


class Snapshot(NamedTuple):
    """The API's answers at one time.

    Attributes:
      time: seconds of a monotonic clock.
      connections: the requested pages of the ``total`` connections.
      events: the events since the previous snapshot.
    """

    time: float
    status: Answer
    routes: Sequence[Answer]
    connections: Sequence[Answer]
    total: int
    events: Sequence[Answer]


class RouteRates(NamedTuple):
    """A route as the API shows it, with its rates per second between two snapshots."""

    route: Answer
    upstream: float
    downstream: float
    connections: float
    failures: float
    history: Sequence[float]

    @property
    def bytes(self) -> float:
        """Return bytes per second, both directions together."""
        return self.upstream + self.downstream


class Traffic:
    """The latest snapshot of a daemon, with the rates since the previous one.

    Attributes:
      snapshot: the latest snapshot; None before the first.
      routes: the routes' rates, in the API's order.
      events: the latest events, oldest first.
      trouble: why the last poll failed; None after a successful one.
    """

    def __init__(self) -> None:
        self.snapshot: Snapshot | None = None
        self.routes: list[RouteRates] = []
        self.events: deque[Answer] = deque(maxlen=_EVENTS)
        self.trouble: str | None = None
        self._history: dict[str, deque[float]] = {}

    def observe(self, snapshot: Snapshot) -> None:
        """Record a snapshot; one of a restarted daemon discards the history."""
        before = self.snapshot
        if before is not None and before.status["started"] != snapshot.status["started"]:
            before = None
            self._history.clear()
            self.events.clear()
        self.snapshot = snapshot
        self.trouble = None
        self.events.extend(snapshot.events)
        counted = {route["name"]: route for route in before.routes} if before else {}
        seconds = snapshot.time - before.time if before else 0.0
        self.routes = [
            self._rates(route, counted.get(route["name"]), seconds) for route in snapshot.routes
        ]

    def record_failure(self, trouble: str) -> None:
        """Record that a poll failed, and why; the previous snapshot stays."""
        self.trouble = trouble

    @property
    def last_event(self) -> int:
        """Return the id of the latest event; 0 if there is none."""
        return int(self.events[-1]["id"]) if self.events else 0

    def _rates(self, now: Answer, before: Answer | None, seconds: float) -> RouteRates:
        history = self._history.setdefault(now["name"], deque(maxlen=HISTORY))
        if before is None or seconds <= 0:
            return RouteRates(now, 0.0, 0.0, 0.0, 0.0, history)

        def rate(key: str) -> float:
            return max(0.0, (_total(now[key]) - _total(before[key])) / seconds)

        upstream, downstream = rate("upstream_bytes"), rate("downstream_bytes")
        history.append(upstream + downstream)
        return RouteRates(
            now, upstream, downstream, rate("accepted"), rate("dial_failures"), history
        )


def _total(counter: int | Mapping[str, int]) -> int:
    return sum(counter.values()) if isinstance(counter, Mapping) else counter
