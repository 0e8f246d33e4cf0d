"""The counters of a route, its live connections, and the states of its targets.

Owns: these numbers, written by the data path and read by views. Knows no Prometheus and no log.
Every write happens in the trio thread, so a reader in that thread sees consistent numbers.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from time import monotonic, time
from typing import Final, Literal, NamedTuple, get_args

from vsockproxy.address.endpoint import Target
from vsockproxy.config.by_name import ByName
from vsockproxy.config.settings import Config, Route
from vsockproxy.connection import Connection
from vsockproxy.errors import DialError
from vsockproxy.pump.direct import Durations, Tally

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
    """Count observations by upper bound; the last of ``counts`` is for values above all."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count one value; a value that equals a bound belongs to it."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def add(self, durations: Durations) -> None:
        """Count values that were counted by the same bounds."""
        for bucket in range(len(self.counts)):
            self.counts[bucket] += durations.counts[bucket]
        self.sum += durations.seconds


RouteState = Literal[
    "listening",  # clients are accepted
    "queued",  # a limit keeps clients in the backlog
    "paused",  # an operator keeps clients in the backlog
    "retrying",  # its listener cannot be opened yet, and is tried again
    "draining",  # its listener is closed, and connections are left
    "drained",  # its listener is closed, and no connection is left
    "off",  # a defect ended it
]
"""The state of a route."""

ROUTE_STATES: Final[tuple[RouteState, ...]] = get_args(RouteState)


class LastError(NamedTuple):
    """The last failed dial of a route: its time (seconds of the epoch), and what it was."""

    time: float
    reason: str
    message: str
    remedy: str


TargetStateName = Literal["unknown", "up", "refused", "down"]
"""The state of a target after its last dial: not dialled, connected, refused, or no answer."""

TARGET_STATES: Final[tuple[TargetStateName, ...]] = get_args(TargetStateName)

HeldResult = Literal["served", "failed", "left", "timeout", "full"]
"""How holding a client ended; the label ``result`` of held_clients_total."""


class TargetState:
    """The state of one target of a route.

    Attributes:
      address: the target's endpoint.
      name: the state.
      since: the time of the last change, in seconds of `time.monotonic`.
      last_error: the error of the last failed dial, which is kept when the target is up again.
      failed_at: the time of that dial, in seconds of the epoch.
    """

    __slots__ = ("address", "failed_at", "last_error", "name", "since")

    def __init__(self, address: Target) -> None:
        self.address = address
        self.name: TargetStateName = "unknown"
        self.since = monotonic()
        self.last_error: DialError | None = None
        self.failed_at = 0.0

    def keep_error(self, error: DialError) -> None:
        """Keep the error of a failed dial, without its traceback."""
        self.last_error = error.with_context("")
        self.failed_at = time()

    def become(self, name: TargetStateName) -> None:
        """Change the state, and ``since`` if it differs."""
        if name != self.name:
            self.name = name
            self.since = monotonic()

    @property
    def seconds(self) -> float:
        """Return the seconds since the last change."""
        return monotonic() - self.since


class RouteStats:
    """The counters of one route since the daemon started.

    Attributes:
      live: the open connections.
      connections: accepted clients.
      closed: ended connections, by reason (`Transfer.reason`, or ``dial_<reason>``).
      dial_failures: clients whose dial failed, by `reasons.Reason`.
      accept_errors: failed calls of accept(2).
      rejected: rejected clients, by `gate.RejectReason`.
      accept_pauses: pauses of accepting, by `gate.QueueReason`.
      sources: open connections, by `Connection.source`.
      requests: decisions on what clients asked for, by verdict.
      targets: the states of the route's targets.
      held: clients that are held until a target answers.
      held_results: clients that were held, by result.
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
        "live",
        "rejected",
        "requests",
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
        self.requests: Counter[str] = Counter()
        self.sources: dict[str, int] = {}
        self.targets: list[TargetState] = []
        self.held = 0
        self.held_results: Counter[HeldResult] = Counter()
        self.dial_seconds = Histogram(DIAL_BOUNDS)
        self.connection_seconds = Histogram(CONNECTION_BOUNDS)
        self._ended_bytes = (0, 0)

    @property
    def last_error(self) -> LastError | None:
        """Return the last error of any target, or None."""
        failed = [state for state in self.targets if state.last_error is not None]
        if not failed:
            return None
        state = max(failed, key=lambda state: state.failed_at)
        error = state.last_error
        assert error is not None
        return LastError(state.failed_at, error.reason, error.summary, error.remedy)

    def keep_error(self, target: Target | ByName, error: DialError) -> None:
        """Keep an error for a target of the route."""
        for state in self.targets:
            if state.address == target:
                state.keep_error(error)

    def open(self, connection: Connection) -> None:
        """Count an accepted connection."""
        self.live.add(connection)
        self.connections += 1

    def count_source(self, connection: Connection, source: str | None) -> None:
        """Count an open connection under a source until it closes; under none if it is None."""
        if connection.source is not None:
            self._forget_source(connection.source)
        connection.source = source
        if source is not None:
            self.sources[source] = self.sources.get(source, 0) + 1

    def close(self, connection: Connection, reason: str, seconds: float | None = None) -> None:
        """Add a connection's numbers to the route's totals; call it once for each connection.

        It was open for ``seconds``; by default it has ended now.
        """
        self.live.remove(connection)
        if connection.source is not None:
            self._forget_source(connection.source)
        if seconds is None:
            seconds = monotonic() - connection.opened
        self.closed[reason] += 1
        self.connection_seconds.observe(seconds)
        self._add_bytes(connection.upstream_bytes, connection.downstream_bytes)

    def count_tally(self, tally: Tally) -> None:
        """Count connections that were never among the live ones."""
        self.connections += tally.number
        self.closed.update(tally.ends)
        self.dial_seconds.add(tally.dials)
        self.connection_seconds.add(tally.lives)
        self._add_bytes(tally.upstream_bytes, tally.downstream_bytes)

    def _add_bytes(self, upstream: int, downstream: int) -> None:
        ended = self._ended_bytes
        self._ended_bytes = (ended[0] + upstream, ended[1] + downstream)

    def _forget_source(self, source: str) -> None:
        self.sources[source] -= 1
        if not self.sources[source]:
            del self.sources[source]

    @property
    def upstream_bytes(self) -> int:
        """Return the bytes from clients to targets, those of open connections included."""
        return self._ended_bytes[0] + sum(c.upstream_bytes for c in self.live)

    @property
    def downstream_bytes(self) -> int:
        """Return the bytes from targets to clients, those of open connections included."""
        return self._ended_bytes[1] + sum(c.downstream_bytes for c in self.live)


class FailedReload(NamedTuple):
    """A reload that failed: its time (seconds of the epoch), and a line for each problem."""

    time: float
    problems: Sequence[str]


class Reloads:
    """The reloads of the configuration since the daemon started.

    Attributes:
      results: reloads by result, ``success`` or ``failure``.
      last_success: the time of the last successful load or reload, in seconds of the epoch.
      last_failure: the last reload, if it failed.
      fingerprint: the running configuration's (`Config.fingerprint`).
    """

    __slots__ = ("fingerprint", "last_failure", "last_success", "results")

    def __init__(self, config: Config) -> None:
        self.results: Counter[str] = Counter(success=0, failure=0)
        self.last_failure: FailedReload | None = None
        self.fingerprint = config.fingerprint
        self.last_success = time()

    def succeeded(self, config: Config) -> None:
        """Count a successful reload to ``config``."""
        self.results["success"] += 1
        self.fingerprint = config.fingerprint
        self.last_success = time()
        self.last_failure = None

    def failed(self, problems: Sequence[str]) -> None:
        """Count a failed reload, and keep why it failed until one succeeds."""
        self.results["failure"] += 1
        self.last_failure = FailedReload(time(), problems)
