"""What a route has done, in plain numbers: written by `relay` and `listener`, read by views.

Owns: the counters and the table of live connections.  Nothing here knows Prometheus or
logging; every write happens in the trio thread, so a reader in that thread sees numbers
that agree with each other.
"""

from __future__ import annotations

import errno
import os
import socket
from bisect import bisect_left
from collections import Counter
from contextlib import suppress
from time import monotonic, time
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from vsockproxy.address.endpoint import AF_VSOCK, GuestEndpoint, MuxEndpoint, Target, VsockEndpoint
from vsockproxy.address.sockaddr import address_of, peer_name
from vsockproxy.config.settings import Config, Route
from vsockproxy.errors import DialError
from vsockproxy.pump.transfer import EndReason, Meter

if TYPE_CHECKING:
    import trio

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


class Connection(Meter):
    """One live connection of a route: identity, age, and its byte counters.

    Attributes:
      number: unique in this process, ascending.
      target: where it leads, or is to lead; one of its route's.
      opened: when it was accepted, in seconds of `time.monotonic`.
      dial_seconds: how long the dial took; None until the target answered.
      waited: for how many seconds it was held until a target answered.
      vmm_port: the number of a vsock-mux's OK, which is for people: VMMs differ in what it is.
      family, address: where the client is, or where its PROXY header says that it is.
      destination: family and address that the client wanted, where its header says so.
      source: under what it is counted, where its route bounds that (`access.Peer.source`).
      ending: what its end is called if it is cancelled; whoever cancels says so first. "killed"
        also ends one whose task has not run yet.
      dialling: ends the dial, while it is under way.
    """

    __slots__ = (
        "_address",
        "destination",
        "dial_seconds",
        "dialling",
        "ending",
        "family",
        "number",
        "opened",
        "route",
        "source",
        "target",
        "vmm_port",
        "waited",
    )

    def __init__(self, number: int, route: Route, family: int, address: Any) -> None:
        super().__init__()
        self.number = number
        self.route = route
        self.target: Target = route.target
        self.opened = monotonic()
        self.dial_seconds: float | None = None
        self.waited = 0.0
        self.vmm_port: int | None = None
        self.dialling: trio.CancelScope | None = None
        self.ending: EndReason = "shutdown"
        self.family = family
        self._address = address
        self.destination: tuple[int, Any] | None = None
        self.source: str | None = None

    @property
    def address(self) -> Any:
        """The client's address as the socket module has it."""
        if isinstance(self._address, bytes):  # read when asked for, as most are never shown
            return address_of(self.family, self._address)
        return self._address

    @address.setter
    def address(self, address: Any) -> None:
        self._address = address

    @property
    def client(self) -> str:
        """The peer's address, for people."""
        return peer_name(self.family, self.address)

    def assign(self, vmm_port: int) -> None:
        """Note what the VMM called this connection."""
        self.vmm_port = vmm_port

    def end(self, reason: EndReason) -> None:
        """End it soon, under ``reason``; one that has ended stays as it is."""
        self.ending = reason
        if self.dialling is not None:
            self.dialling.cancel()
        elif self.running is not None:
            self.running.stop()

    @property
    def idle_seconds(self) -> float:
        """How long ago a byte last moved, or the connection began."""
        active = self.running.active() if self.running else 0.0
        return max(0.0, monotonic() - max(active, self.opened))

    @property
    def halves(self) -> tuple[bool, bool]:
        """Whether the way upstream has ended, and the way downstream."""
        if self.running is None:
            return False, False
        return self.running.upstream_done(), self.running.downstream_done()

    @property
    def destination_port(self) -> int | None:
        """The vsock port that was asked for: the listener's, else the target's; or None."""
        for endpoint in (self.route.listen, self.target):
            if isinstance(endpoint, VsockEndpoint | MuxEndpoint | GuestEndpoint):
                return endpoint.port
        return None

    @property
    def source_port(self) -> int | None:
        """The vsock port of the side that opened it: the client's, else ours towards the target.

        Behind a VMM's socket that is what the VMM called it.  None where no side is vsock,
        nobody tells, or the connection is over.
        """
        if self.family == AF_VSOCK:
            return int(self.address[1])
        if isinstance(self.target, VsockEndpoint | GuestEndpoint):
            with suppress(OSError), self.duplicate() as sock:
                if sock.family == AF_VSOCK:
                    return int(sock.getsockname()[1])
        return self.vmm_port

    @property
    def file_descriptor(self) -> int:
        """The number of its vsock side's descriptor: the client's, else the target's.

        -1 while it is dialled and once it is closed.  The descriptor is the pump's: use
        `duplicate`.
        """
        return -1 if self.running is None else self.running.descriptor(not self._came_by_vsock)

    def duplicate(self) -> socket.socket:
        """A duplicate of its vsock side's socket, the caller's to close.

        Whoever reads or writes there takes from, or adds to, what the relay carries.  Raises
        OSError, EBADF while there is no such socket.
        """
        if self.running is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return socket.socket(fileno=self.running.duplicate(not self._came_by_vsock))

    @property
    def _came_by_vsock(self) -> bool:
        return isinstance(self.route.listen, VsockEndpoint | MuxEndpoint)

    def close(self) -> None:
        """End it both ways, soon; nothing to do for one that has ended."""
        self.end("killed")

    def names(self) -> dict[str, object]:
        """Who it is, as the fields of a log line."""
        return {
            "number": self.number,
            "route": self.route.name,
            "client": self.client,
            "target": str(self.target),
        }

    def __str__(self) -> str:
        return f"#{self.number} {self.client} -> {self.target}"

    def __repr__(self) -> str:
        return (
            f"<Connection {self} route={self.route.name!r}"
            f" upstream={self.upstream_bytes} downstream={self.downstream_bytes}>"
        )


class LastError(NamedTuple):
    """The last dial that failed: when (seconds of the epoch), its reason, and its sentence."""

    time: float
    reason: str
    message: str


TargetStateName = Literal["unknown", "up", "refused", "down"]
"""What a target's last answer was: none yet, a connection, that nothing listens, or nothing."""

TARGET_STATES: Final[tuple[TargetStateName, ...]] = ("unknown", "up", "refused", "down")

WaitResult = Literal["served", "failed", "left", "late", "max_waiting"]
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
      rejected: how many clients were turned away, by `admission.Rejection`.
      waits: how often accepting paused, by `admission.Hindrance`.
      sources: how many of ``live`` have each `Connection.source`.
      last_error: the last dial that failed.
      targets: what is known of each of the route's targets.
      waiting: how many clients are held until a target answers.
      held: how many clients were held, by how that ended (`WaitResult`).
    """

    __slots__ = (
        "_ended_bytes",
        "accept_errors",
        "closed",
        "connection_seconds",
        "connections",
        "dial_failures",
        "dial_seconds",
        "held",
        "last_error",
        "live",
        "rejected",
        "route",
        "sources",
        "targets",
        "waiting",
        "waits",
    )

    def __init__(self, route: Route) -> None:
        self.route = route
        self.live: set[Connection] = set()
        self.connections = 0
        self.closed: Counter[str] = Counter()
        self.dial_failures: Counter[str] = Counter()
        self.accept_errors = 0
        self.rejected: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self.sources: dict[str, int] = {}
        self.last_error: LastError | None = None
        self.targets: list[TargetState] = []
        self.waiting = 0
        self.held: Counter[WaitResult] = Counter()
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
