"""Moves bytes between two connected sockets: the interface, and which pump serves.

Owns: `Pump`, `Meter`, `Transfer`, and the lifetime of the native threads.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Literal, Protocol

EndReason = Literal[
    "finished",
    "half_close_timeout",
    "idle_timeout",
    "client_reset",
    "target_reset",
    "killed",
    "drained",
    "shutdown",
]
"""How a transfer ended; the label ``reason`` of connections_closed_total."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """A finished transfer: bytes moved each way and how it ended."""

    upstream_bytes: int
    downstream_bytes: int
    reason: EndReason


class Meter:
    """The live byte counters of one transfer; they only grow."""

    __slots__ = ("_downstream", "_upstream")

    def __init__(self) -> None:
        self._upstream = 0
        self._downstream = 0

    @property
    def upstream_bytes(self) -> int:
        """Bytes taken by the target's socket so far."""
        return self._upstream

    @property
    def downstream_bytes(self) -> int:
        """Bytes taken by the client's socket so far."""
        return self._downstream


class Pump(Protocol):
    """Moves bytes both ways between two sockets until both sides have ended."""

    name: str

    async def transfer(
        self, client: socket.socket, target: socket.socket, meter: Meter
    ) -> Transfer:
        """Relay until the end; owns and closes both sockets, also when cancelled."""
        ...
