"""What a route has done, in plain numbers: written by `relay` and `listener`, read by views.

Owns: the counters and the table of live connections.  Nothing here knows Prometheus or
logging; every write happens in the trio thread, so a reader in that thread sees numbers
that agree with each other.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from time import monotonic, time
from typing import Final, Literal, NamedTuple

from vsockproxy.address.endpoint import Target
from vsockproxy.config.settings import Config, Route
from vsockproxy.connection import Connection
from vsockproxy.errors import DialError

DIAL_BOUNDS: Final = (
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1,
    2.5,
    5,
    10,
)
"""Upper bounds, in seconds, of the dial-time histogram."""

CONNECTION_BOUNDS: Final = (0.01, 0.1, 1, 10, 60, 300, 1800, 3600, 14400, 86400)
"""Upper bounds, in seconds, of the connection-time histogram."""


class Histogram:
    """Counts of observations by upper bound; ``counts`` has one more, for the rest."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count one value; a value that equals a bound belongs to it."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


RouteState = Literal["listening", "queued", "paused", "draining", "drained"]
"""What a route does now; ``queued``: a limit keeps clients in its backlog."""


class LastError(NamedTuple):
    """The last dial that failed: when (seconds of the epoch), its reason, and its sentence."""

    time: float
    reason: str
    message: str


TargetStateName = Literal["unknown", "up", "refused", "down"]
"""What a target's last answer was: none yet, a connection, that nothing listens, or nothing."""

TARGET_STATES: Final[tuple[TargetStateName, ...]] = ("unknown", "up", "refused", "down")

HeldResult = Literal["served", "failed", "left", "timeout", "full"]
"""How waiting for a guest ended; the label ``result`` of guest_waits_total."""


class TargetState:
    """What is known of one target of a route.

    Attributes:
      address: its endpoint.
      name: its state.
      since: when it came to that, in seconds of `time.monotonic`.
      last_error: what was wrong with the last dial that failed, however long ago.
    """

    __slots__ = ("address", "last_error", "name", "since")

    def __init__(self, address: Target) -> None:
        self.address = address
        self.name: TargetStateName = "unknown"
        self.since = monotonic()
        self.last_error: DialError | None = None

    def become(self, name: TargetStateName) -> None:
        """Note a state; the same one again is no change."""
        if name != self.name:
            self.name = name
            self.since = monotonic()

    @property
    def seconds(self) -> float:
        """How long it has been so."""
        return monotonic() - self.since


class RouteStats:
    """The counters of one route since the daemon started.

    Attributes:
      live: the connections that are open now.
      connections: how many were ever accepted.
      closed: how many ended, by reason (`Transfer.reason`, or ``dial_<reason>``).
      dial_failures: how many dials failed, by `errors.Reason`.
      accept_errors: how often accept(2) failed.
      rejected: how many clients were turned away, by `admission.RejectReason`.
      accept_pauses: how often accepting paused, by `admission.QueueReason`.
      sources: how many of ``live`` have each `Connection.source`.
      last_error: the last dial that failed.
      targets: what is known of each of the route's targets.
      held: how many clients are held until a target answers.
      held_results: how many clients were held, by how that ended (`HeldResult`).
    """

    __slots__ = (
        "_ended_bytes",
        "accept_errors",
        "accept_pauses",
        "closed",
        "connection_seconds",
        "connections",
        "dial_failures",
        "dial_seconds",
        "held",
        "held_results",
        "last_error",
        "live",
        "rejected",
        "route",
        "sources",
        "targets",
    )

    def __init__(self, route: Route) -> None:
        self.route = route
        self.live: set[Connection] = set()
        self.connections = 0
        self.closed: Counter[str] = Counter()
        self.dial_failures: Counter[str] = Counter()
        self.accept_errors = 0
        self.rejected: Counter[str] = Counter()
        self.accept_pauses: Counter[str] = Counter()
        self.sources: dict[str, int] = {}
        self.last_error: LastError | None = None
        self.targets: list[TargetState] = []
        self.held = 0
        self.held_results: Counter[HeldResult] = Counter()
        self.dial_seconds = Histogram(DIAL_BOUNDS)
        self.connection_seconds = Histogram(CONNECTION_BOUNDS)
        self._ended_bytes = (0, 0)

    def dial_failed(self, reason: str, message: str) -> None:
        """Count a dial that failed, and keep its sentence."""
        self.dial_failures[reason] += 1
        self.last_error = LastError(time(), reason, message)

    def open(self, connection: Connection) -> None:
        """Count a connection that was accepted."""
        self.live.add(connection)
        self.connections += 1

    def count_source(self, connection: Connection, source: str | None) -> None:
        """Count an open connection under its source until it closes; None is nowhere."""
        if connection.source is not None:
            self._forget_source(connection.source)
        connection.source = source
        if source is not None:
            self.sources[source] = self.sources.get(source, 0) + 1

    def close(self, connection: Connection, reason: str) -> None:
        """Move a connection's numbers to the route's totals; called once for each."""
        self.live.remove(connection)
        if connection.source is not None:
            self._forget_source(connection.source)
        self.closed[reason] += 1
        self.connection_seconds.observe(monotonic() - connection.opened)
        upstream, downstream = self._ended_bytes
        self._ended_bytes = (
            upstream + connection.upstream_bytes,
            downstream + connection.downstream_bytes,
        )

    def _forget_source(self, source: str) -> None:
        self.sources[source] -= 1
        if not self.sources[source]:
            del self.sources[source]

    @property
    def upstream_bytes(self) -> int:
        """Bytes from clients to the target, those of live connections included."""
        return self._ended_bytes[0] + sum(c.upstream_bytes for c in self.live)

    @property
    def downstream_bytes(self) -> int:
        """Bytes from the target to clients, those of live connections included."""
        return self._ended_bytes[1] + sum(c.downstream_bytes for c in self.live)


class Reloads:
    """How the configuration has been reloaded since the daemon started.

    Attributes:
      results: how many reloads went through (``success``) and how many did not (``failure``).
      last_success: when the running configuration was taken, in seconds of the epoch.
      fingerprint: of the running configuration (`Config.fingerprint`).
    """

    __slots__ = ("fingerprint", "last_success", "results")

    def __init__(self, config: Config) -> None:
        self.results: Counter[str] = Counter(success=0, failure=0)
        self.fingerprint = config.fingerprint
        self.last_success = time()

    def succeeded(self, config: Config) -> None:
        """Count a reload that brought ``config``."""
        self.results["success"] += 1
        self.fingerprint = config.fingerprint
        self.last_success = time()

    def failed(self) -> None:
        """Count a reload that changed nothing."""
        self.results["failure"] += 1
