"""Who comes in, and when: the limits and the rules between a backlog and a relay.

Owns: `Admission`, what all routes share (connections, descriptors), and `Gate`, one route's.
A gate that is shut leaves clients in the kernel's backlog, where they cost nothing; a gate
that rejects resets them.  Accepts and dials nothing.

How many connections there are is what `stats` says, so a reload can bring a limit at any
time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from time import monotonic
from typing import Any, Final, Literal

import trio

from vsockproxy.admit import descriptors
from vsockproxy.admit.peer import peer_at, peer_of
from vsockproxy.config.access import Access, Peer, matches_any
from vsockproxy.config.settings import Limits, Policy, Route
from vsockproxy.connection import Connection
from vsockproxy.log.output import Throttle
from vsockproxy.stats import RouteStats

Limit = Literal["max_connections", "limits_max_connections", "connection_rate"]

QueueReason = Limit | Literal["descriptors"]
"""Why clients wait in the backlog; the label ``reason`` of admission_waits_total."""

RejectReason = (
    Limit
    | Literal[
        "max_connections_per_source",
        "denied",
        "proxy_untrusted",
        "proxy_malformed",
        "proxy_timeout",
    ]
)
"""Why a client was turned away; the label ``reason`` of rejected_total."""

REASONS: Final[Mapping[str, str]] = {
    "max_connections": "the route has as many connections as max_connections allows",
    "limits_max_connections": "the daemon has as many connections as limits.max_connections allows",
    "connection_rate": "clients come faster than connection_rate",
    "descriptors": "the descriptor table is nearly full: raise LimitNOFILE= (or ulimit -Hn)",
    "max_connections_per_source": "its source has as many as max_connections_per_source allows",
    "denied": "the allow and deny lists do not let it in",
    "proxy_untrusted": "it is not in proxy_trusted, so its PROXY header would not be believed",
    "proxy_malformed": "what it sent is no PROXY header",
    "proxy_timeout": "it sent no whole PROXY header within connect_timeout",
}
"""What a `QueueReason` or a `RejectReason` means, for the log."""

_LOOK_AGAIN: Final = 1.0  # seconds; what frees a descriptor is not always a connection
_EACH: Final = 2  # descriptors of a connection


class Admission:
    """What all routes share: the number of connections, and the descriptors for them.

    Attributes:
      limits: what the configuration allows; `adopt` replaces it.
      live: how many connections there are.
      ceiling: with fewer than this there is certainly room.
      waiting: who waits for room in this.
      parked: how many wait at all, for a route's own limit too.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self.live = 0
        self.waiting = trio.lowlevel.ParkingLot()
        self.parked = 0
        self._others = 0
        self.adopt(limits or Limits())

    def adopt(self, limits: Limits) -> None:
        """Follow new limits, and count the descriptors anew: listeners have come or gone."""
        self.limits = limits
        self._most = math.inf if limits.max_connections is None else limits.max_connections
        self._room: int | None = None  # descriptors for connections; None is not counted yet
        self.ceiling = 0.0
        self.waiting.unpark_all()

    def recount(self) -> int:
        """Look how many descriptors there are for connections, those of ``live`` included."""
        largest = descriptors.limit()
        others = descriptors.count_open() - _EACH * self.live
        # A connection whose dial has not begun has one of its two, and would hide another:
        # so the greater of two counts in a row, and no more of them, or one moment's
        # spike would shut the gate for as long as anybody is connected.
        self._room = largest - descriptors.reserve(largest) - max(self._others, others)
        self._others = others
        self.ceiling = min(self._most, self._room // _EACH)
        return self._room

    def descriptors_free(self) -> int:
        """How many descriptors connections may still take, counted now; 0 if clients wait."""
        return max(0, self.recount() - _EACH * self.live)

    @property
    def is_open(self) -> bool:
        """Whether there is room for one connection more; what a readiness check asks."""
        return not (self.is_short() or self.is_full())

    def is_short(self) -> bool:
        """Whether descriptors are so few that accepting must wait."""
        room = self.recount() if self._room is None else self._room
        return room < _EACH * (self.live + 1)

    def is_full(self) -> bool:
        """Whether there are as many connections as all routes together may have."""
        return self.live >= self._most

    def pass_on(self) -> None:
        """Wake one who waits, if there is room; whoever is woken and has no use calls it too."""
        if self.is_open:
            self.waiting.unpark()


class Gate:
    """One route's way in; `adopt` is called before anything else."""

    def __init__(self, stats: RouteStats, admission: Admission, log: Any) -> None:
        self._stats = stats
        self._shared = admission
        self._log = Throttle(log)
        self._waiting = trio.lowlevel.ParkingLot()
        self._rate: float | None = None
        self._bucket: _Bucket | None = None

    def adopt(self, route: Route) -> None:
        """Follow a route's policy, for the clients that come from now on."""
        policy = self._policy = route.policy
        self._access = Access(policy.allow, policy.deny)
        self._asks = bool(self._access) or policy.max_connections_per_source is not None
        self._is_strict = self._asks or policy.accept_proxy or policy.over_limit == "reject"
        self._most = math.inf if policy.max_connections is None else policy.max_connections
        self._follow_rate(policy)
        if policy.max_connections_per_source is not None:
            self._count_sources()
        self._waiting.unpark_all()

    def _follow_rate(self, policy: Policy) -> None:
        rate = policy.connection_rate
        if rate != self._rate:  # else a reload would fill the bucket
            self._rate = rate
            self._bucket = None if rate is None else _Bucket(rate, math.ceil(rate))

    def _count_sources(self) -> None:
        """Count those who came in while nobody asked; the users of Unix clients are not known."""
        for connection in self._stats.live:
            if connection.source is None:
                source = peer_at(connection.family, connection.address).source
                self._stats.count_source(connection, source)

    # ---- waiting in the backlog ----

    def queue_reason(self) -> QueueReason | None:
        """Why clients must stay in the backlog now, if they must."""
        shared = self._shared
        # Asked for every client: where nothing is near its limit, this is all.
        if shared.live < shared.ceiling and self._bucket is None and not self._is_at_limit():
            return None
        if shared.is_short():
            return "descriptors"
        return self._limit() if self._policy.over_limit == "queue" else None

    def _limit(self) -> Limit | None:
        """The limit that is reached, if one is."""
        if self._is_at_limit():
            return "max_connections"
        if self._bucket is not None and self._bucket.seconds():
            return "connection_rate"
        return "limits_max_connections" if self._shared.is_full() else None

    def _is_at_limit(self) -> bool:
        return len(self._stats.live) >= self._most

    async def opened(self) -> None:
        """Wait until a client may be accepted."""
        while reason := self.queue_reason():
            self._stats.accept_pauses[reason] += 1
            self._write("clients_queued", reason, lambda: {"route": self._stats.route.name})
            self.pass_on()  # what woke us, and is no use here, is of use to somebody else
            own = reason in ("max_connections", "connection_rate")
            lot = self._waiting if own else self._shared.waiting
            if not await self._park(lot, self._pause(reason)) and reason == "descriptors":
                self._shared.recount()

    async def _park(self, lot: trio.lowlevel.ParkingLot, seconds: float) -> bool:
        """Wait in a lot; whether somebody has woken us before the time was over."""
        self._shared.parked += 1
        try:
            with trio.move_on_after(seconds) as pause:
                await lot.park()
        finally:
            self._shared.parked -= 1
        return not pause.cancelled_caught

    def _pause(self, reason: QueueReason) -> float:
        if reason == "connection_rate" and self._bucket is not None:
            return self._bucket.seconds()
        return _LOOK_AGAIN

    def pass_on(self) -> None:
        """Wake others who wait, if there is room for a client of theirs."""
        if self._shared.parked:
            if self._limit() is None:
                self._waiting.unpark()
            self._shared.pass_on()

    def recount(self) -> None:
        """Look at the descriptors again: there were none where there should have been."""
        self._shared.recount()

    # ---- coming in ----

    def room(self, most: int) -> int:
        """How many clients may be accepted at once: ``most`` where no limit is near, or one."""
        shared = self._shared
        is_far = shared.live + most < shared.ceiling and self._most == math.inf
        return most if is_far and self._bucket is None and not self._is_strict else 1

    def admit(self, client: int, connection: Connection) -> bool:
        """Whether an accepted client may come in; if so, it is counted until `leave`."""
        reason = self._refusal(client, connection) if self._is_strict else None
        if reason is not None:
            self.reject(connection, reason)
            return False
        if self._bucket is not None:
            self._bucket.take()
        self._stats.open(connection)
        self._shared.live += 1
        return True

    def leave(self, connection: Connection, reason: str) -> None:
        """Count the end of a connection that was admitted, and make room for another."""
        self._stats.close(connection, reason)
        self._shared.live -= 1
        self.pass_on()

    def identify(self, connection: Connection) -> RejectReason | None:
        """Judge a connection by what its PROXY header says: why it may not stay, if so."""
        if not self._asks:
            return None
        return self._judge(peer_at(connection.family, connection.address), connection)

    def reject(self, connection: Connection, reason: RejectReason) -> None:
        """Count a client that is turned away; log it, unless there are too many."""
        self._stats.rejected[reason] += 1
        self._write("client_rejected", reason, connection.names)

    def _refusal(self, client: int, connection: Connection) -> RejectReason | None:
        policy = self._policy
        if policy.over_limit == "reject" and (limit := self._limit()):
            return limit
        if policy.accept_proxy:
            # Whom it speaks for is judged once its header has come.
            trusted = matches_any(policy.proxy_trusted, self._peer(client, connection))
            return None if trusted else "proxy_untrusted"
        return self._judge(self._peer(client, connection), connection) if self._asks else None

    def _peer(self, client: int, connection: Connection) -> Peer:
        return peer_of(client, connection.family, connection.address)

    def _judge(self, peer: Peer, connection: Connection) -> RejectReason | None:
        if not self._access.admits(peer):
            return "denied"
        most = self._policy.max_connections_per_source
        if most is not None and (source := peer.source) is not None:
            if self._stats.sources.get(source, 0) >= most:
                return "max_connections_per_source"
            self._stats.count_source(connection, source)
        return None

    def _write(
        self,
        event: str,
        reason: QueueReason | RejectReason,
        names: Callable[[], Mapping[str, object]],
    ) -> None:
        self._log.warning(event, names, reason=reason, why=REASONS[reason])


class _Bucket:
    """A token bucket: so many a second, and so many at once after a pause."""

    def __init__(self, rate: float, burst: int) -> None:
        self._rate = rate
        self._burst = burst
        self._level = float(burst)
        self._filled = monotonic()

    def seconds(self) -> float:
        """How long until there is a token; 0 when there is one."""
        now = monotonic()
        self._level = min(self._burst, self._level + self._rate * (now - self._filled))
        self._filled = now
        return max(0.0, (1.0 - self._level) / self._rate)

    def take(self) -> None:
        self._level -= 1.0
