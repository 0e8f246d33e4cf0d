"""One transfer between two connected sockets: what bounds it, counts it and ends it.

Owns: the interface that every pump serves, as values and a protocol.  Knows no pump.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Any, Final, Literal, NamedTuple, Protocol

EndReason = Literal[
    "finished",  # both sides ended, every byte delivered
    "half_close_timeout",  # one side ended, the other was silent for too long
    "idle_timeout",  # no byte either way for too long
    "max_lifetime",  # it was open for as long as the route allows
    "client_reset",  # the client went away without taking all
    "target_reset",  # the target went away without taking, or sending, all
    "killed",  # an operator ended it
    "drained",  # the route stopped and its drain_timeout was over
    "shutdown",  # the daemon was told to end at once
    "error",  # a defect of this program; the log has the traceback
]
"""How a connection ended; the label ``reason`` of connections_closed_total."""

ENDINGS: Final[dict[str, str]] = {
    "half_close_timeout": "one side had ended and the other stayed silent for half_close_timeout",
    "idle_timeout": "no byte either way for idle_timeout",
    "max_lifetime": "it had been open for max_lifetime; the client was reset",
    "client_reset": "the client went away without taking all",
    "target_reset": "the target went away in mid-stream: its service reset the connection,"
    " or the VM was stopped; the client was reset",
    "killed": "ended by an operator",
    "drained": "the route stopped and drain_timeout was over",
    "shutdown": "the daemon was told to end at once",
}
"""What an `EndReason` other than ``finished`` means, for the log."""


class Transfer(NamedTuple):
    """A transfer that has ended: the bytes that were delivered, and why it ended.

    ``errno`` is the kernel's word behind a reset, or 0.
    """

    upstream_bytes: int
    downstream_bytes: int
    reason: EndReason
    errno: int = 0


Accepted = tuple[int, Any]
"""A client's descriptor, and its address: the socket module's, or as `struct sockaddr`."""

Limit = Any
"""A bandwidth for one direction of any number of transfers; the pump's own, made by `share`."""


class Bounds(NamedTuple):
    """What ends a transfer before its sides do: seconds without a byte, None for never.

    ``hold_half_close`` keeps a client's EOF from a target that owes it an answer, which is
    while the last byte went upstream (`route.Policy.half_close`).
    ``bandwidth`` is in bytes a second, each way; ``shared`` are the limits upstream and
    downstream that the transfer has in common with others (`Pump.share`).
    ``max_lifetime`` is in seconds, silent or not.
    """

    idle_timeout: float | None = None
    half_close_timeout: float | None = None
    hold_half_close: bool = False
    bandwidth: int | None = None
    shared: tuple[Limit, Limit] | None = None
    max_lifetime: float | None = None


class Running(Protocol):
    """A transfer under way, as its pump knows it."""

    def upstream_bytes(self) -> int:
        """Bytes taken by the target's socket so far."""
        ...

    def downstream_bytes(self) -> int:
        """Bytes taken by the client's socket so far."""
        ...

    def active(self) -> float:
        """When a byte last moved, in seconds of `time.monotonic`; 0 before the first turn."""
        ...

    def upstream_done(self) -> bool:
        """Whether nothing more goes upstream."""
        ...

    def downstream_done(self) -> bool:
        """Whether nothing more goes downstream."""
        ...

    def descriptor(self, target: bool) -> int:
        """The number of the target's socket, or the client's; -1 once that is closed."""
        ...

    def duplicate(self, target: bool) -> int:
        """A duplicate of it, the caller's; raises OSError, EBADF once it is closed."""
        ...

    def stop(self) -> None:
        """End it as ``killed``, soon."""
        ...


class Meter:
    """The live numbers of one transfer: the counters only grow, and stay when it has ended.

    ``running`` is the transfer while there is one.
    """

    __slots__ = ("_downstream", "_upstream", "running")

    def __init__(self) -> None:
        self.running: Running | None = None
        self._upstream = 0
        self._downstream = 0

    def follow(self, running: Running) -> None:
        """Read ``running`` from now on; for the pump that runs the transfer."""
        self.running = running

    def settle(self, upstream: int, downstream: int) -> None:
        """Keep the final numbers and let go of the transfer."""
        self.running = None
        self._upstream = upstream
        self._downstream = downstream

    @property
    def upstream_bytes(self) -> int:
        """Bytes taken by the target's socket so far."""
        return self.running.upstream_bytes() if self.running else self._upstream

    @property
    def downstream_bytes(self) -> int:
        """Bytes taken by the client's socket so far."""
        return self.running.downstream_bytes() if self.running else self._downstream


class Pump(Protocol):
    """Moves bytes both ways between two connected sockets until both have ended.

    ``name`` is ``native`` or ``portable``; ``why`` is the sentence behind the choice.
    """

    @property
    def name(self) -> str:
        """``native`` or ``portable``."""
        ...

    @property
    def why(self) -> str:
        """Why this pump and not the other, for the log."""
        ...

    def share(self, bandwidth: int) -> Limit:
        """A limit of so many bytes a second, for one direction of all who are given it."""
        ...

    async def alive(self) -> None:
        """Return once everything that moves bytes has shown that it goes on."""
        ...

    def accept(self, listener: int, room: int) -> Sequence[Accepted]:
        """Those of ``room`` clients that wait at a listening socket; fewer when no more wait.

        The descriptors are the caller's.  Raises BlockingIOError when none waits, and what
        else accept(2) has to say as OSError.
        """
        ...

    def transfer(
        self, client: int, target: int, bounds: Bounds, meter: Meter
    ) -> Awaitable[Transfer]:
        """Relay between two connected stream sockets; both are closed when it returns.

        It begins with the call, made by the task that awaits what is returned, at once.

        The descriptors are the pump's from the call on, blocking or not.  Cancelled, it resets the
        client, closes both, settles ``meter`` and raises `trio.Cancelled`.  How a
        connection ends is a value and never an exception.
        """
        ...
