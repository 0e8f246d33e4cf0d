"""The interface of a pump: a transfer between two connected sockets, its bounds and its end.

Owns: the values and protocols that both pumps share.  Knows neither of them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Protocol

if TYPE_CHECKING:
    from vsockproxy.pump.direct import ConnectionLimit, DirectRoute

EndReason = Literal[
    "finished",  # nothing was lost: both ended, or one closed with nothing under way
    "half_close_timeout",  # no byte for half_close_timeout after one side's EOF
    "idle_timeout",  # no byte either way for idle_timeout
    "max_lifetime",  # it was open for max_lifetime
    "client_reset",  # the client closed before it had taken, or sent, everything
    "target_reset",  # the target closed before it had taken, or sent, everything
    "killed",  # an operator ended it
    "drained",  # the route stopped and drain_timeout had passed
    "shutdown",  # the daemon shut down without waiting for it
    "no_memory",  # the system had no memory, or no epoll watch, for the connection
    "error",  # a defect of this program; the log has the traceback
]
"""How a connection ended; the label ``reason`` of connections_closed_total."""

ENDINGS: Final[dict[str, str]] = {
    "half_close_timeout": "one side had sent EOF and the other sent nothing for half_close_timeout",
    "idle_timeout": "no byte either way for idle_timeout",
    "max_lifetime": "the connection was open for max_lifetime",
    "client_reset": "the client closed before it had received everything",
    "target_reset": "the target's service reset the connection, or the VM was stopped",
    "killed": "ended by an operator",
    "drained": "the route stopped and drain_timeout had passed",
    "shutdown": "the daemon shut down without waiting for the connection",
    "no_memory": "the system had no memory, or no epoll watch (fs.epoll.max_user_watches), for it",
}
"""The sentence for an `EndReason` other than ``finished``, for the log."""


class Transfer(NamedTuple):
    """A transfer that has ended: the bytes that were delivered, and why it ended."""

    upstream_bytes: int
    downstream_bytes: int
    reason: EndReason


Accepted = tuple[int, Any]
"""A client's descriptor, and its address: the socket module's, or as `struct sockaddr`."""

SharedBandwidth = Any
"""A bandwidth for one direction of any number of transfers; made by, and only for, one pump."""


class Bounds(NamedTuple):
    """The limits of a transfer; None is no limit.

    Attributes:
      idle_timeout: seconds without a byte either way.
      half_close_timeout: seconds without a byte after one side's EOF.
      half_close_hold: seconds of silence both ways before a client's FIN is passed on; None: at
        once.
      bandwidth: bytes a second, each way.
      shared: the bandwidth upstream and downstream that it shares with others (`Pump.share`).
      max_lifetime: seconds in all.
      linger_timeout: seconds without progress until a socket is closed that still delivers.
      vmm: the target is the socket of a VMM, whose process lived when it was connected: an EOF as
        that process ends is a reset.
    """

    idle_timeout: float | None = None
    half_close_timeout: float | None = None
    half_close_hold: float | None = None
    bandwidth: int | None = None
    shared: tuple[SharedBandwidth, SharedBandwidth] | None = None
    max_lifetime: float | None = None
    linger_timeout: float = 10.0
    vmm: bool = False


class LiveTransfer(Protocol):
    """A transfer under way, as its pump knows it."""

    def upstream_bytes(self) -> int:
        """Return the bytes that the target's socket has taken so far."""
        ...

    def downstream_bytes(self) -> int:
        """Return the bytes that the client's socket has taken so far."""
        ...

    def active(self) -> float:
        """Return when a byte last moved, in seconds of `time.monotonic`; 0 before it has begun."""
        ...

    def upstream_done(self) -> bool:
        """Return whether nothing more goes upstream."""
        ...

    def downstream_done(self) -> bool:
        """Return whether nothing more goes downstream."""
        ...

    def descriptor(self, target: bool) -> int:
        """Return the descriptor of the target's socket, or the client's; -1 once it is closed.

        The pump owns it: to use it, take a duplicate.
        """
        ...

    def duplicate(self, target: bool) -> int:
        """Return a duplicate of it, the caller's to close; OSError EBADF once it is closed.

        Both share O_NONBLOCK: one that is set to block can stop a thread of the pump.
        """
        ...

    def stop(self) -> None:
        """Ask for its end, as ``killed``; returns before it has ended.

        The second call ends it without waiting for what is being delivered.
        """
        ...


class Meter:
    """The byte counters of one transfer: they only grow, and stay when it has ended.

    ``running`` is the transfer while it is under way, else None.
    """

    __slots__ = ("_downstream", "_upstream", "running")

    def __init__(self) -> None:
        self.running: LiveTransfer | None = None
        self._upstream = 0
        self._downstream = 0

    def follow(self, running: LiveTransfer) -> None:
        """Read ``running`` from now on; called by the pump."""
        self.running = running

    def settle(self, upstream: int, downstream: int) -> None:
        """Keep the final numbers and forget the transfer; called by the pump."""
        self.running = None
        self._upstream = upstream
        self._downstream = downstream

    @property
    def upstream_bytes(self) -> int:
        """The bytes that the target's socket has taken so far."""
        return self.running.upstream_bytes() if self.running else self._upstream

    @property
    def downstream_bytes(self) -> int:
        """The bytes that the client's socket has taken so far."""
        return self.running.downstream_bytes() if self.running else self._downstream


class Pump(Protocol):
    """Moves bytes both ways between two connected sockets until both have ended.

    Every call must come from the thread that runs trio.
    """

    @property
    def name(self) -> str:
        """``native`` or ``portable``."""
        ...

    @property
    def why(self) -> str:
        """The reason why this pump was chosen, for the log."""
        ...

    def share(self, bandwidth: int) -> SharedBandwidth:
        """Return a bandwidth, in bytes a second, for transfers to share in one direction."""
        ...

    @property
    def limit(self) -> ConnectionLimit | None:
        """Return the limit of all direct routes together; None where the pump has no such routes.

        None are allowed at first.
        """
        ...

    def route(self) -> DirectRoute | None:
        """Return a new direct route, whose limit allows none at first; None where `limit` is."""
        ...

    async def alive(self) -> None:
        """Return once every thread or task that moves bytes has shown that it runs.

        What it had to report by the call is reported then.
        """
        ...

    def accept(self, listener: int, room: int) -> Sequence[Accepted]:
        """Accept up to ``room`` clients from a listening socket; fewer when its backlog is empty.

        The descriptors are the caller's.

        Raises:
          BlockingIOError: the backlog is empty.
          OSError: accept(2) failed for the first client.
        """
        ...

    def transfer(
        self, client: int, target: int, bounds: Bounds, meter: Meter
    ) -> Awaitable[Transfer]:
        """Relay between two connected stream sockets; await the result for the transfer's end.

        Args:
          client: descriptor of the accepted socket, blocking or not; the pump's from the call on.
          target: descriptor of the dialled socket, likewise.
          bounds: what limits the transfer.
          meter: follows the transfer, and has the final numbers when it has ended.

        The transfer begins with the call, and the calling task must await the result immediately.
        Both sockets are closed when that returns, each as `closing.closing_of` says.  However
        the connection ends, it is a value and not an exception.

        Cancellation: both sockets are closed as after `LiveTransfer.stop`, which may take
        ``linger_timeout`` since the last progress, ``meter`` is settled, and `trio.Cancelled` is
        raised.

        Raises:
          OSError: the pump has no memory for it; both descriptors are closed, by RST.
        """
        ...
