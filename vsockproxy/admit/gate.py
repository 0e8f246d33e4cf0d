"""A route's gate: its limits between its backlog and its relays.

Owns: `Gate`: whether clients stay queued in the kernel's backlog, where they cost nothing, and
whether an accepted client is admitted or rejected. Accepts and dials nothing.
`pump/_native/route.c` counts the clients that the pump accepts, for direct routes.

The numbers that it compares with limits are those of `stats`, so a reload can change a limit.
"""

from __future__ import annotations

import errno
import math
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

import trio

from vsockproxy.admit.access import AccessReason, AccessRules
from vsockproxy.admit.peer import peer_at, peer_of
from vsockproxy.admit.process_limits import Admission
from vsockproxy.admit.token_bucket import TokenBucket
from vsockproxy.config.access import Peer, matches_any
from vsockproxy.config.settings import Policy, Route
from vsockproxy.connection import Connection
from vsockproxy.log.output import Throttle
from vsockproxy.pump.direct import ConnectionLimit, Tally
from vsockproxy.stats import RouteStats

LimitName = Literal["max_connections", "limits_max_connections", "connection_rate"]

QueueReason = LimitName | Literal["descriptors", "memory"]
"""Why clients are queued; the label ``reason`` of accept_pauses_total."""

RejectReason = (
    LimitName
    | AccessReason
    | Literal["proxy_untrusted", "proxy_malformed", "proxy_timeout"]
    | Literal["request_malformed", "request_timeout", "request_unauthenticated", "request_denied"]
)
"""Why a client was rejected; the label ``reason`` of clients_rejected_total."""

REASONS: Final[Mapping[str, str]] = {
    "max_connections": "the route has reached max_connections",
    "limits_max_connections": "the daemon has reached limits.max_connections",
    "connection_rate": "clients connect faster than connection_rate",
    "descriptors": "the descriptor table is nearly full: raise LimitNOFILE= (or ulimit -Hn)",
    "memory": "memory is nearly used up: raise LimitAS= (or ulimit -Hv), or set max_connections",
    "max_connections_per_source": "the client's source has reached max_connections_per_source",
    "denied": "the allow and deny lists exclude the client",
    "proxy_untrusted": "the client is not in proxy_trusted, so it may not send a PROXY header",
    "proxy_malformed": "the client sent no valid PROXY header",
    "proxy_timeout": "the client sent no complete PROXY header within connect_timeout",
    "request_malformed": "the client sent no valid request for a target",
    "request_timeout": "the client sent no complete request within connect_timeout",
    "request_unauthenticated": "the client's user or password is wrong or missing",
    "request_denied": "the route's rules deny what the client asked for",
}
"""The sentence for a `QueueReason` or a `RejectReason` in the log."""

_PAUSE: Final = 1.0  # seconds between two looks; a descriptor is freed without a notice


class Gate:
    """Admit, queue or reject the clients of one route."""

    def __init__(self, stats: RouteStats, admission: Admission, log: Any) -> None:
        """Guard ``stats.route``."""
        self._stats = stats
        self._shared = admission
        self._log = Throttle(log)
        self._queue = trio.lowlevel.ParkingLot()
        self._pump_limit: ConnectionLimit | None = None
        self._direct = 0  # connections that the pump has accepted, as far as they were reported
        self._rate: float | None = None
        self._bucket: TokenBucket | None = None
        self.reconfigure(stats.route)

    def reconfigure(self, route: Route) -> None:
        """Follow a new policy, for new clients."""
        policy = self._policy = route.policy
        self._access = AccessRules(policy, self._stats)
        self._is_strict = (
            self._access.has_any or policy.accept_proxy or policy.over_limit == "reject"
        )
        self._most = math.inf if policy.max_connections is None else policy.max_connections
        self._follow_rate(policy)
        self._allow()
        self._queue.unpark_all()

    def _follow_rate(self, policy: Policy) -> None:
        rate = policy.connection_rate
        if rate != self._rate:  # an unchanged rate keeps its bucket: a reload must not fill it
            self._rate = rate
            self._bucket = None if rate is None else TokenBucket(rate, math.ceil(rate))

    # ---- keeping clients in the backlog ----

    def queue_reason(self) -> QueueReason | None:
        """Return the limit that keeps clients in the backlog now, or None."""
        shared = self._shared
        # It runs for every client: far from all limits, these comparisons are all.
        if shared.is_far and self._bucket is None and not self._is_at_limit():
            return None
        if shared.is_short():
            return "descriptors"
        if shared.is_out_of_memory():
            return "memory"
        return self._limit() if self._policy.over_limit == "queue" else None

    def _limit(self) -> LimitName | None:
        """Return a limit that is reached, or None."""
        if self._is_at_limit():
            return "max_connections"
        if self._bucket is not None and self._bucket.seconds():
            return "connection_rate"
        return "limits_max_connections" if self._shared.is_full() else None

    def _is_at_limit(self) -> bool:
        # A connection whose end was not reported yet still counts here: no view may show too many.
        unreported = 0 if self._pump_limit is None else max(0, self._pump_limit.unreported)
        return len(self._stats.live) + unreported >= self._most

    async def wait_for_room(self) -> None:
        """Wait until a client may be accepted.

        Acceptors queue for the limit that stops them: in their gate for the route's own limits,
        in `Admission` for the shared ones. Each end of a connection wakes one acceptor of each
        queue, not all of them: with many queued routes, most could not accept anyway. An acceptor
        that returns and does not accept must call `wake_others`.
        """
        while reason := self.queue_reason():
            self._stats.accept_pauses[reason] += 1
            self._write("clients_queued", reason, lambda: {"route": self._stats.route.name})
            self.wake_others()  # this wake-up does not help us: hand it to the next acceptor
            own = reason in ("max_connections", "connection_rate")
            queue = self._queue if own else self._shared.queue
            woken = await self._wait_in(queue, self._pause(reason))
            if not woken and reason == "descriptors":
                self._shared.recount()

    async def _wait_in(self, queue: trio.lowlevel.ParkingLot, seconds: float) -> bool:
        """Wait in a queue; return whether it was left before ``seconds`` had passed."""
        self._shared.queued += 1
        try:
            with trio.move_on_after(seconds) as pause:
                await queue.park()
        finally:
            self._shared.queued -= 1
        return not pause.cancelled_caught

    def _pause(self, reason: QueueReason) -> float:
        if reason == "connection_rate" and self._bucket is not None:
            return self._bucket.seconds()
        return _PAUSE

    def wake_others(self) -> None:
        """Wake one acceptor of this gate and one of any route, where there is room."""
        if self._shared.queued:
            if self._limit() is None:
                self._queue.unpark()
            self._shared.wake_one()

    def recount(self) -> None:
        """Count the descriptors again, after the kernel has refused one."""
        self._shared.recount()

    def is_short_by(self, error: OSError) -> bool:
        """Return whether the error of an accept(2) by the pump is a limit that queues clients."""
        if error.errno not in (errno.EMFILE, errno.ENFILE):
            return False
        self.recount()
        return self.queue_reason() is not None

    def connections_free(self) -> int:
        """Return how many new connections have descriptors, counted now."""
        return self._shared.connections_free()

    # ---- admitting a client ----

    def room(self, most: int) -> int:
        """Return how many clients may be accepted together: ``most`` far from limits, else 1."""
        shared = self._shared
        is_far = shared.open + most < shared.ceiling and self._most == math.inf
        return most if is_far and self._bucket is None and not self._is_strict else 1

    def admit(self, client: int, connection: Connection) -> bool:
        """Return whether an accepted client is admitted; the caller then owes a `leave`.

        A rejected client is counted and logged; its descriptor stays the caller's to reset.
        """
        reason = self._rejection(client, connection) if self._is_strict else None
        if reason is not None:
            self.reject(connection, reason)
            return False
        if self._bucket is not None:
            self._bucket.take()
        self._stats.open(connection)
        self._shared.live += 1
        self._shared.unasked += 1
        self._allow()
        return True

    def leave(self, connection: Connection, reason: str) -> None:
        """Count the end of an admitted connection, and wake acceptors for the room it leaves."""
        try:
            self._stats.close(connection, reason)
        finally:
            self._shared.live -= 1
            self._allow()
            self.wake_others()

    # ---- clients that the pump accepts ----

    def share(self, limit: ConnectionLimit, shared: ConnectionLimit) -> None:
        """Let the pump accept clients as well, within ``limit``, and those of all routes."""
        self._pump_limit = limit
        self._shared.share(shared)
        self._allow()

    def _allow(self) -> None:
        """Tell the pump how many connections it may have.

        One fewer than the limit, and a batch fewer than the shared one: so many are accepted here
        in one step, in which the pump may accept as well.
        """
        if self._pump_limit is not None:
            self._pump_limit.allow(self._most - (len(self._stats.live) - self._direct) - 1)
        self._shared.allow()

    def is_far(self) -> bool:
        """Return whether the pump may accept clients now; then it has been told how many."""
        if self._pump_limit is None or self.queue_reason() is not None:
            return False
        self._allow()  # connections of the route's earlier listener end without this gate
        own = self._pump_limit.unreported + len(self._stats.live) + 1
        return own < self._most and self._shared.has_room()

    def count(self, connection: Connection) -> None:
        """Count a connection that the pump has accepted; it ends by `uncount`."""
        self._direct += 1
        self._stats.open(connection)
        self._shared.count_direct(1)

    def uncount(self, connection: Connection, reason: str, seconds: float) -> None:
        """Count the end of such a connection, and wake acceptors for the room it leaves."""
        try:
            self._stats.close(connection, reason, seconds)
        finally:
            self._direct -= 1
            self._shared.count_direct(-1)
            self.wake_others()

    def count_tally(self, tally: Tally) -> None:
        """Count such connections that are over already."""
        self._stats.count_tally(tally)
        self._shared.count_passed(tally.number)
        for _ in range(min(tally.number, self._shared.queued)):
            self.wake_others()

    def identify(self, connection: Connection) -> RejectReason | None:
        """Judge a connection by its PROXY header; return why it is rejected, or None.

        A rejected connection is not counted here: call `reject`, and `leave` at its end.
        """
        if not self._access.has_any:
            return None
        return self._access.judge(peer_at(connection.family, connection.address), connection)

    def reject(self, connection: Connection, reason: RejectReason, error: str = "") -> None:
        """Count a rejected client, and log it unless the log has such a line already."""
        self._stats.rejected[reason] += 1
        more = {"error": error} if error else {}
        self._write("client_rejected", reason, lambda: connection.names() | more)

    def _rejection(self, client: int, connection: Connection) -> RejectReason | None:
        policy = self._policy
        if policy.over_limit == "reject" and (limit := self._limit()):
            return limit
        if policy.accept_proxy:
            # The client that the header names is judged once the header has come.
            trusted = matches_any(policy.proxy_trusted, self._peer(client, connection))
            return None if trusted else "proxy_untrusted"
        if not self._access.has_any:
            return None
        return self._access.judge(self._peer(client, connection), connection)

    def _peer(self, client: int, connection: Connection) -> Peer:
        return peer_of(client, connection.family, connection.address)

    def _write(
        self,
        event: str,
        reason: QueueReason | RejectReason,
        names: Callable[[], Mapping[str, object]],
    ) -> None:
        self._log.warning(event, names, reason=reason, why=REASONS[reason])
