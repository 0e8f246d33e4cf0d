"""What a daemon does now: rates and their recent past, from looks at its counters.

Owns: `Look`, `Traffic`.  Knows neither sockets nor terminals: it is given the API's answers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

Answer = Mapping[str, Any]

HISTORY: Final = 60
"""How many rates of a route are remembered, one a look."""

_EVENTS: Final = 100


class Look(NamedTuple):
    """What the API said at one time, in seconds of any clock that only goes on.

    ``connections`` is one page or more of ``total``; ``events`` are those since the look before.
    """

    time: float
    status: Answer
    routes: Sequence[Answer]
    connections: Sequence[Answer]
    total: int
    events: Sequence[Answer]


class RouteRates(NamedTuple):
    """One route: what the API says of it, and what it did a second between two looks."""

    route: Answer
    upstream: float
    downstream: float
    connections: float
    failures: float
    history: Sequence[float]

    @property
    def bytes(self) -> float:
        """Bytes a second, both ways."""
        return self.upstream + self.downstream


class Traffic:
    """The latest look at a daemon, with the rates since the look before.

    Attributes:
      routes: the routes' rates, in the API's order.
      events: the latest events, the oldest first.
      trouble: why there was no look at last; None while there is one.
    """

    def __init__(self) -> None:
        self.look: Look | None = None
        self.routes: list[RouteRates] = []
        self.events: deque[Answer] = deque(maxlen=_EVENTS)
        self.trouble: str | None = None
        self._history: dict[str, deque[float]] = {}

    def observe(self, look: Look) -> None:
        """Take a look in; another daemon than before begins anew."""
        if self.look is not None and self.look.status["started"] != look.status["started"]:
            self.look = None
            self._history.clear()
            self.events.clear()
        before, self.look = self.look, look
        self.trouble = None
        self.events.extend(look.events)
        counted = {route["name"]: route for route in before.routes} if before else {}
        seconds = look.time - before.time if before else 0.0
        self.routes = [
            self._rates(route, counted.get(route["name"]), seconds) for route in look.routes
        ]

    def miss(self, trouble: str) -> None:
        """Note that there was no look, and why; what was seen last stays."""
        self.trouble = trouble

    @property
    def last_event(self) -> int:
        """The number of the latest event that is known; 0 if none is."""
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
