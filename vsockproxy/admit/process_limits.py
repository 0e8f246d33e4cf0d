"""Admission: the limits that all routes share.

Owns: `Admission`: how many connections, descriptors and how much memory there are, and whether
another connection has room. `gate` asks it for each route. Accepts nothing.
"""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Final

import trio

from vsockproxy.admit import descriptors, memory
from vsockproxy.config.process import Limits
from vsockproxy.pump.direct import ConnectionLimit

_EACH: Final = 2  # descriptors of a connection
_MANY: Final = 1000  # descriptors that are listed in under a millisecond
_PERIOD: Final = 1.0  # seconds from one count of more than these to the next; arbitrary
_BATCH: Final = 64  # clients that one step admits
_UNASKED: Final = 64  # clients admitted from one question about memory to the next


class Admission:
    """The limits that all routes share: connections, and the descriptors for them.

    Attributes:
      limits: the configured limits; `reconfigure` replaces them.
      live: open connections of all routes.
      ceiling: with fewer connections than this, a client can certainly be accepted.
      unasked: how many clients were admitted since the kernel was asked for memory.
      queue: the acceptors that are parked until all routes together have room.
      queued: the number of parked acceptors, those at a route's own limit included.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self.live = 0
        self._direct = 0  # of them: those that the pump has accepted
        self._pump_limit: ConnectionLimit | None = None
        self._allowed: float | None = None  # as the pump knows it
        self.unasked = _UNASKED
        self.queue = trio.lowlevel.ParkingLot()
        self.queued = 0
        self._others = self._taken = 0
        self.reconfigure(limits or Limits())

    def reconfigure(self, limits: Limits) -> None:
        """Follow new limits, and count the descriptors again: listeners have come or gone."""
        self.limits = limits
        self._most = math.inf if limits.max_connections is None else limits.max_connections
        self._room: int | None = None  # descriptors for connections; None: not counted yet
        self.ceiling = 0.0
        self.allow()
        self.queue.unpark_all()

    # ---- connections that the pump accepts ----

    def share(self, limit: ConnectionLimit) -> None:
        """Let the pump accept clients as well, within ``limit``."""
        if limit is not self._pump_limit:
            self._pump_limit, self._allowed = limit, None
            self.allow()

    @property
    def open(self) -> int:
        """The number of open connections, those included that the pump has not reported yet."""
        return self.live if self._pump_limit is None else self.live + self._pump_limit.unreported

    def allow(self) -> None:
        """Tell the pump how many connections it may have: none if memory is short.

        A batch fewer than fit: so many are admitted here in one step, in which it may accept too.
        """
        if self._pump_limit is None:
            return
        own = -(-(self.live - self._direct) // _BATCH) * _BATCH  # rounded up: it changes less often
        most = 0 if self.unasked >= _UNASKED else self.ceiling - own - _BATCH
        if most != self._allowed:
            self._allowed = most
            self._pump_limit.allow(most)

    def has_room(self) -> bool:
        """Return whether the pump may accept clients, as `allow` tells it."""
        return self.is_far and self._pump_limit is not None and self._allows(self._pump_limit)

    def _allows(self, limit: ConnectionLimit) -> bool:
        self.allow()
        return self._allowed is not None and self._direct + limit.unreported < self._allowed

    def count_direct(self, change: int) -> None:
        """Count a connection that the pump has accepted, or its end."""
        self.live += change
        self._direct += change
        if change > 0:
            self.count_passed(1)

    def count_passed(self, number: int) -> None:
        """Count clients that the pump has accepted; ask for memory now and then."""
        self.unasked += number
        if self.unasked >= _UNASKED and self.is_out_of_memory():
            self.allow()

    def recount(self) -> int:
        """Count the descriptors for connections again, those of ``live`` included; return them.

        Where that would take long, `count_aside` has counted them in the last second.
        """
        if not self._is_counted_aside():
            self._note(descriptors.count_open() - _EACH * self.open)
        return self._measure()

    def count_again(self) -> None:
        """Count the descriptors again, if they are counted: the first client has that done.

        At the start the process is still to open some, and may be given another limit.
        """
        if self._room is not None:
            self.recount()

    async def count_aside(self) -> None:
        """Count the descriptors every second where that takes long, in a thread, until cancelled.

        Returns at once where the kernel tells their number.
        """
        while descriptors.count_quickly() is None:
            await trio.sleep(_PERIOD)
            if self._is_counted_aside():
                before = self.open
                with suppress(RuntimeError):  # no thread can be started
                    opened = await trio.to_thread.run_sync(
                        descriptors.count_open, abandon_on_cancel=True
                    )
                    self._note(opened - _EACH * min(before, self.open))
                    self._measure()

    def _is_counted_aside(self) -> bool:
        return self._others + _EACH * self.open > _MANY and descriptors.count_quickly() is None

    def _note(self, others: int) -> None:
        """Keep a number of descriptors that connections do not have."""
        # A connection before its dial has one of its two descriptors, and would hide another one
        # of the process. The greater of the last two counts evens that out; a longer memory
        # would let one peak close the gate for as long as any client is connected.
        self._taken = max(self._others, others)
        self._others = others

    def _measure(self) -> int:
        """Return how many descriptors connections may have, with the limit as it is now."""
        largest = descriptors.limit()
        room = self._room = largest - descriptors.reserve(largest) - self._taken
        self.ceiling = min(self._most, room // _EACH)
        self.allow()
        return room

    def descriptors_free(self) -> int:
        """Return how many descriptors new connections may take, counted now."""
        return max(0, self.recount() - _EACH * self.open)

    def connections_free(self) -> int:
        """Return how many new connections have descriptors, counted now."""
        return self.descriptors_free() // _EACH

    @property
    def is_open(self) -> bool:
        """Whether one more connection has room; the readiness check asks this."""
        return not (self.is_short() or self.is_out_of_memory() or self.is_full())

    @property
    def is_far(self) -> bool:
        """Whether a client can certainly be accepted, without a question to the kernel."""
        return self.unasked < _UNASKED and self.open < self.ceiling

    def is_short(self) -> bool:
        """Return whether too few descriptors are free for another connection."""
        room = self.recount() if self._room is None else self._room
        return room < _EACH * (self.open + 1)

    def is_out_of_memory(self) -> bool:
        """Return whether too little memory is left for more connections."""
        if self.unasked >= _UNASKED and memory.is_left():
            self.unasked = 0
            self.allow()
        return self.unasked >= _UNASKED

    def is_full(self) -> bool:
        """Return whether all routes together have reached limits.max_connections."""
        return self.open >= self._most

    def wake_one(self) -> None:
        """Wake one queued acceptor if there is room; one that cannot use it must call this too."""
        if self.is_open:
            self.queue.unpark()
