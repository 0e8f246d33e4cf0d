"""One connection of a route: its identity, age, ports and counters.

Owns: `Connection`, and `VsockConnection`, its counterpart for programs. `stats` keeps the table
of open connections; the relay fills one in, and the pump moves its counters.
"""

from __future__ import annotations

import errno
import math
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from time import monotonic
from typing import Any, Literal, Self

import trio

from vsockproxy.address.endpoint import (
    AF_VSOCK,
    GuestEndpoint,
    MuxEndpoint,
    Target,
    VsockEndpoint,
)
from vsockproxy.address.sockaddr import address_of, peer_name
from vsockproxy.config.by_name import ByName
from vsockproxy.config.request import Request
from vsockproxy.config.settings import Route
from vsockproxy.pump.transfer import EndReason, Meter


class EndedError(Exception):
    """A connection ended before bytes could move.

    Attributes:
      reason: the reason of its end.
      reply: what the client is sent before it is closed; empty resets it.
    """

    def __init__(self, reason: str, reply: bytes = b"") -> None:
        self.reason = reason
        self.reply = reply
        super().__init__(reason)


Stage = Literal["silent", "held", "dialling"]
"""What a connection waits for before bytes move: its client's first bytes, its guest, the dial."""


class Connection(Meter):
    """One connection of a route: its identity, age and byte counters.

    Attributes:
      number: unique in this process, ascending.
      target: the target that it is connected to, or is dialled; one of its route's, or the one
        that the client has named; a `ByName` until then.
      opened: the time of its accept, in seconds of `time.monotonic`.
      dial_seconds: the duration of the dial; None until the target answered.
      held_seconds: for how many seconds the client was held.
      vmm_port: the number in a vsock-mux's OK; its meaning differs between VMMs.
      family, address: the client's, or those in its PROXY header.
      request: what the client asked for, on a route whose clients name their targets.
      replayed: the bytes that were read with the request and sent on to the target.
      destination: family and address that the client connected to, from its PROXY header.
      source: the key of the limit per source (`access.Peer.source`), where the route has one.
      ending: the reason of its end if it is cancelled; set it before cancelling. "killed" also
        ends a connection whose task has not run yet.
      stage: what it waits for, until ``dial_seconds`` is set.
      dialling: the scope of a wait before bytes move (`cancellable`); None at other times.
    """

    __slots__ = (
        "_address",
        "destination",
        "dial_seconds",
        "dialling",
        "ending",
        "family",
        "held_seconds",
        "number",
        "opened",
        "replayed",
        "request",
        "route",
        "source",
        "stage",
        "target",
        "vmm_port",
    )

    def __init__(self, number: int, route: Route, family: int, address: Any) -> None:
        super().__init__()
        self.number = number
        self.route = route
        self.target: Target | ByName = route.target
        self.opened = monotonic()
        self.dial_seconds: float | None = None
        self.held_seconds = 0.0
        self.vmm_port: int | None = None
        self.stage: Stage = "dialling"
        self.dialling: trio.CancelScope | None = None
        self.ending: EndReason = "shutdown"
        self.family = family
        self._address = address
        self.destination: tuple[int, Any] | None = None
        self.source: str | None = None
        self.request: Request | None = None
        self.replayed = 0

    @property
    def upstream_bytes(self) -> int:
        """The bytes that the target's socket has taken so far."""
        return self.replayed + super().upstream_bytes

    @property
    def address(self) -> Any:
        """Return the client's address as the socket module has it."""
        if isinstance(self._address, bytes):  # parsed on demand: most are never shown
            return address_of(self.family, self._address)
        return self._address

    @address.setter
    def address(self, address: Any) -> None:
        self._address = address

    @property
    def client(self) -> str:
        """Return the client's address as text for people."""
        return peer_name(self.family, self.address)

    def assign(self, vmm_port: int) -> None:
        """Keep the number that the VMM gave this connection."""
        self.vmm_port = vmm_port

    @property
    def is_killed(self) -> bool:
        """Return whether an operator has ended it."""
        return self.ending == "killed"

    @contextmanager
    def cancellable(self, stage: Stage = "dialling") -> Iterator[None]:
        """Let `end` and max_lifetime cancel the block, which waits for ``stage``.

        Raises `EndedError` if it was cancelled, and without running the block if `end` came as the
        one before it completed. After the last block, check ``ending``.
        """
        if self.is_killed:
            raise EndedError("killed")
        left = self.lifetime_left()
        deadline = math.inf if left is None else trio.current_time() + left
        with trio.CancelScope(deadline=deadline) as scope:
            self.dialling, self.stage = scope, stage
            try:
                yield
            finally:
                self.dialling = None
        if scope.cancelled_caught:
            has_expired = not self.is_killed and trio.current_time() >= deadline
            raise EndedError("max_lifetime" if has_expired else self.ending)

    def lifetime_left(self) -> float | None:
        """Return the seconds that are left of max_lifetime, at least 0; None without one."""
        longest = self.route.policy.max_lifetime
        return None if longest is None else max(0.0, self.opened + longest - monotonic())

    def end(self, reason: EndReason) -> None:
        """End the connection soon, for ``reason``; an ended one stays as it is."""
        self.ending = reason
        if self.dialling is not None:
            self.dialling.cancel()
        elif self.running is not None:
            self.running.stop()

    def end_now(self, reason: EndReason) -> None:
        """End the connection as `end` does, without waiting for what is being delivered."""
        self.end(reason)
        if self.running is not None:
            self.running.stop()

    @property
    def idle_seconds(self) -> float:
        """Return the seconds since a byte last moved, or since the accept."""
        active = self.running.active() if self.running else 0.0
        return max(0.0, monotonic() - max(active, self.opened))

    @property
    def halves(self) -> tuple[bool, bool]:
        """Return whether the upstream half has ended, and whether the downstream half has."""
        if self.running is None:
            return False, False
        return self.running.upstream_done(), self.running.downstream_done()

    @property
    def destination_port(self) -> int | None:
        """Return the vsock port of the listener, else of the target; None without either."""
        for endpoint in (self.route.listen, self.target):
            if isinstance(endpoint, VsockEndpoint | MuxEndpoint | GuestEndpoint):
                return endpoint.port
        return None

    @property
    def source_port(self) -> int | None:
        """Return the vsock port of the opening side: the client's, else ours at the target.

        Behind a VMM's socket it is the number that the VMM gave. None where no side is vsock, the
        port is unknown, or the connection has ended.
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
        """Return the descriptor of the vsock side: the client's, else the target's.

        It is -1 while the target is dialled and once the connection is closed. The pump owns the
        descriptor: read and write through `duplicate`.
        """
        return -1 if self.running is None else self.running.descriptor(not self._came_by_vsock)

    def duplicate(self) -> socket.socket:
        """Return a duplicate of the vsock side's socket, which the caller owns.

        Reading from it takes bytes from the relay, and writing to it adds bytes. Leave it
        non-blocking: the relay shares that with it. Raises OSError (EBADF) while there is no such
        socket.
        """
        if self.running is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return socket.socket(fileno=self.running.duplicate(not self._came_by_vsock))

    @property
    def _came_by_vsock(self) -> bool:
        return isinstance(self.route.listen, VsockEndpoint | MuxEndpoint)

    def close(self) -> None:
        """End both directions soon; an ended connection stays as it is."""
        self.end("killed")

    def names(self) -> dict[str, object]:
        """Return the fields that name the connection in a log line."""
        asked = {} if self.request is None else {"asked": str(self.request)}
        return {
            "number": self.number,
            "route": self.route.name,
            "client": self.client,
            **asked,
            "target": str(self.target),
        }

    def __str__(self) -> str:
        return f"#{self.number} {self.client} -> {self.target}"

    def __repr__(self) -> str:
        return (
            f"<Connection {self} route={self.route.name!r}"
            f" upstream={self.upstream_bytes} downstream={self.downstream_bytes}>"
        )


class VsockConnection:
    """A connection to a vsock port, as Apple's VZVirtioSocketConnection has it.

    It owns its socket: close it, or use it as a context manager.
    """

    __slots__ = ("_endpoint", "_sock", "source_port")

    def __init__(self, sock: socket.socket, endpoint: VsockEndpoint) -> None:
        """Take ownership of a socket connected to ``endpoint``."""
        self._sock = sock
        self._endpoint = endpoint
        self.source_port: int = sock.getsockname()[1]

    @property
    def destination_port(self) -> int:
        """Return the port that it is connected to."""
        return self._endpoint.port

    @property
    def file_descriptor(self) -> int:
        """Return the descriptor of the socket; -1 once it is closed."""
        return self._sock.fileno()

    def duplicate(self) -> socket.socket:
        """Return a duplicate of the socket, which the caller owns.

        Raises OSError (EBADF) once the connection is closed.
        """
        return self._sock.dup()

    def close(self) -> None:
        """Close the socket; a closed connection stays as it is."""
        self._sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __str__(self) -> str:
        return f"port {self.source_port} -> {self._endpoint}"

    def __repr__(self) -> str:
        return f"<VsockConnection {self} file_descriptor={self.file_descriptor}>"
