"""The interface of a pump that accepts and dials: a route's target and limit, and what it reports.

Owns: the values and protocols.  A direct route's clients need no decision in Python: the native
pump accepts, dials and relays them, and reports them at most every few milliseconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

from vsockproxy.pump.transfer import Bounds, EndReason, LiveTransfer, Meter

DialCause = Literal["errno", "closed_before_ok", "protocol"]
"""What a failed dial's `DialFailure` is about: its errno, or a VMM's handshake."""


class DirectTarget(NamedTuple):
    """The target of a direct route: how its clients are connected and treated.

    Attributes:
      address: a ``struct sockaddr``.
      connect_timeout: seconds for a dial in all.
      handshake_timeout: seconds for a VMM's OK within that; None: no other limit.
      request: the line that a VMM is sent first; empty for other targets.
      answers: the VMM answers it by OK.
      options: level, name and value of socket options, set before the dial.
      bounds: of each transfer; max_lifetime counts from the accept.
      buckets: upper bounds of the durations in a `Tally`, of dials and of connections, in seconds
        and at most 15 each; None where every connection is reported.
    """

    address: bytes
    connect_timeout: float
    handshake_timeout: float | None
    request: bytes
    answers: bool
    options: tuple[tuple[int, int, int], ...]
    bounds: Bounds
    buckets: tuple[Sequence[float], Sequence[float]] | None = None


class Opening(NamedTuple):
    """An accepted client.

    Attributes:
      opened: the time of its accept, in seconds of `time.monotonic`.
      address: its own, as a ``struct sockaddr``.
    """

    opened: float
    address: bytes


class DialFailure(NamedTuple):
    """Why a dial has failed: ``errno`` is 0 where there is none, ``line`` is a VMM's."""

    cause: DialCause
    errno: int
    line: bytes


class Ending(NamedTuple):
    """The end of a connection whose sockets are closed.

    Attributes:
      reason: as of a `Transfer`; None where ``failure`` says why there was none.
      seconds: from its accept.
      upstream_bytes, downstream_bytes: what the two sockets have taken.
    """

    reason: EndReason | None
    failure: DialFailure | None
    seconds: float
    upstream_bytes: int
    downstream_bytes: int


class Dialled(NamedTuple):
    """A connected target: the dial's duration, and the number in a VMM's OK, else 0."""

    seconds: float
    vmm_port: int


class Durations(NamedTuple):
    """How many durations were in each bucket of a target, and in one above all; their sum."""

    counts: Sequence[int]
    seconds: float


class Tally(NamedTuple):
    """Connections that were over before they were reported, and of which only the numbers count.

    None of them was cancelled, and no dial has failed.

    Attributes:
      number: how many there are.
      ends: how many ended for each reason.
      connected: when the last target was connected, in seconds of `time.monotonic`; 0 without one.
      dials: the durations of the dials of connected targets.
      lives: the durations of the connections.
    """

    number: int
    ends: Mapping[EndReason, int]
    upstream_bytes: int
    downstream_bytes: int
    connected: float
    dials: Durations
    lives: Durations


class Clients(Protocol):
    """Called for the clients that the pump accepts for one configuration of a route."""

    def opened(self, opening: Opening, running: LiveTransfer) -> Meter:
        """Return the meter of a connection that is open, which follows ``running`` from now on."""
        ...

    def connected(self, meter: Meter, dialled: Dialled) -> None:
        """Take note that its target is connected."""
        ...

    def ended(self, meter: Meter, ending: Ending) -> None:
        """Take note of its end; the meter is settled."""
        ...

    def passed(self, opening: Opening, dialled: Dialled | None, ending: Ending) -> None:
        """Take note of a connection that is over, and was never reported."""
        ...

    def counted(self, tally: Tally) -> None:
        """Take note of many of these, where the target has buckets."""
        ...

    def unanswered(self, descriptor: int) -> None:
        """Take over a VMM's socket that still owes its OK, and close it after that."""
        ...


class ConnectionLimit(Protocol):
    """How many connections the pump may have open: of one route, or of all direct ones."""

    def allow(self, most: float) -> None:
        """Allow ``most`` open connections, from the next accept on."""
        ...

    @property
    def unreported(self) -> int:
        """Return how many more are open than were reported; negative where no end is reported."""
        ...


class DirectRoute(Protocol):
    """A route whose clients the pump accepts.

    Attributes:
      limit: the route's.
    """

    @property
    def limit(self) -> ConnectionLimit:
        """Return the route's limit."""
        ...

    async def outlast(self) -> None:
        """Return once every connection's end was reported; at once if that is so."""
        ...

    async def serve(self, listener: int, target: DirectTarget, clients: Clients) -> None:
        """Accept at a listening socket until a limit is reached.

        ``listener`` is its descriptor, which stays the caller's and open. Connections go on.

        Raises:
          OSError: accept(2) failed, or the pump has no memory for it.

        Cancellation: nothing is accepted any more once the scope's `cancel` returns.
        """
        ...

    def close(self) -> None:
        """Forget the route, whose connections are over."""
        ...
