"""One live connection, as an operator and a program see it: identity, age, ports, counters.

`stats` keeps the table of them; the relay fills one in, and the pump moves its counters.
"""

from __future__ import annotations

import errno
import os
import socket
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Any

from vsockproxy.address.endpoint import (
    AF_VSOCK,
    GuestEndpoint,
    MuxEndpoint,
    Target,
    VsockEndpoint,
)
from vsockproxy.address.sockaddr import address_of, peer_name
from vsockproxy.config.settings import Route
from vsockproxy.pump.transfer import EndReason, Meter

if TYPE_CHECKING:
    import trio


class Connection(Meter):
    """One live connection of a route: identity, age, and its byte counters.

    Attributes:
      number: unique in this process, ascending.
      target: where it leads, or is to lead; one of its route's.
      opened: when it was accepted, in seconds of `time.monotonic`.
      dial_seconds: how long the dial took; None until the target answered.
      held_seconds: for how many seconds it was held until a target answered.
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
        "held_seconds",
        "number",
        "opened",
        "route",
        "source",
        "target",
        "vmm_port",
    )

    def __init__(self, number: int, route: Route, family: int, address: Any) -> None:
        super().__init__()
        self.number = number
        self.route = route
        self.target: Target = route.target
        self.opened = monotonic()
        self.dial_seconds: float | None = None
        self.held_seconds = 0.0
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
