"""Connect to the first of several addresses that answers (RFC 8305, "happy eyeballs").

Owns: the order and the overlap of the attempts, and the memory of addresses that did not answer.

The next address is tried when one has failed, or has been silent for a quarter of a second; the
attempts before it go on, but for the oldest of too many. An address that did not answer when a
later one did is tried last for a while. The others keep the resolver's order, by which a name
server shares clients out.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Awaitable, Callable, Sequence
from time import monotonic
from typing import Final

import trio

from vsockproxy.address.sockaddr import NO_IPV6, Address
from vsockproxy.per_trio_run import PerRun

STAGGER: Final = 0.25
"""Seconds before the next address is tried too: RFC 8305, section 8."""

_REMEMBERED: Final = 600.0
"""Seconds for which a silent address is tried last: RFC 8305, section 9.2."""

_MOST_OPEN: Final = 4
"""Attempts of one dial at a time: the owner of a name chooses how many addresses it has."""

_MOST: Final = 1024  # remembered addresses; more than a file usually names

Attempt = Callable[[Address], Awaitable[socket.socket]]
"""Return a socket connected to an address; raise OSError."""


class _Silent:
    """The addresses that are tried last, each until a time."""

    def __init__(self) -> None:
        self._until: dict[Address, float] = {}

    def last(self, addresses: Sequence[Address]) -> list[Address]:
        """Return the addresses, those that were silent behind the others."""
        now = monotonic()
        return sorted(addresses, key=lambda address: self._until.get(address, now) > now)

    def note(self, silent: Sequence[Address], answered: Address) -> None:
        """Remember addresses that were silent while another one answered, and forget that one."""
        self._until.pop(answered, None)
        for address in silent:
            self._until.pop(address, None)
            self._until[address] = monotonic() + _REMEMBERED
        while len(self._until) > _MOST:
            del self._until[next(iter(self._until))]


_SILENT: Final = PerRun(_Silent)


async def connect_first(
    addresses: Sequence[Address], attempt: Attempt, deadline: float
) -> socket.socket:
    """Return a socket connected to one of several addresses, which the caller owns.

    ``attempt`` ends at ``deadline``, in trio's time. Raises OSError if no address answers: the
    most useful of the errors. Cancelled, it leaves no socket.
    """
    silent = _SILENT.get()
    race = _Race(silent.last(addresses), attempt)
    try:
        await race.run(deadline)
    except BaseException:
        if race.sock is not None:
            race.sock.close()
        raise
    if race.sock is None:
        raise max(race.failures, key=_usefulness)[1]
    silent.note(race.silent(), race.addresses[race.winner])
    return race.sock


class _Race:
    """The attempts of one dial; ``sock`` is the first that connected, to address ``winner``."""

    def __init__(self, addresses: Sequence[Address], attempt: Attempt) -> None:
        self.addresses = addresses
        self.sock: socket.socket | None = None
        self.winner = 0
        self.failures: list[tuple[Address, OSError]] = []
        self._open: dict[trio.CancelScope, None] = {}  # of the attempts, the oldest first
        self._attempt = attempt

    async def run(self, deadline: float) -> None:
        # With little time, or many addresses, the last one still gets its turn.
        pause = min(STAGGER, (deadline - trio.current_time()) / len(self.addresses))
        async with trio.open_nursery() as nursery:
            for number in range(len(self.addresses)):
                if len(self._open) >= _MOST_OPEN:
                    next(iter(self._open)).cancel()
                    await trio.lowlevel.checkpoint()  # it closes its socket before the next one
                scope = trio.CancelScope()
                self._open[scope] = None
                failed = trio.Event()
                nursery.start_soon(self._try, number, scope, failed, nursery.cancel_scope)
                with trio.move_on_after(max(0.0, pause)):
                    await failed.wait()

    def silent(self) -> list[Address]:
        """Return the addresses that were tried before the winner and have not failed."""
        failed = {address for address, _ in self.failures}
        return [one for one in self.addresses[: self.winner] if one not in failed]

    async def _try(
        self, number: int, scope: trio.CancelScope, failed: trio.Event, others: trio.CancelScope
    ) -> None:
        address = self.addresses[number]
        sock = None
        try:
            with scope:
                sock = await self._attempt(address)
        except OSError as error:
            self.failures.append((address, error))
            failed.set()
            return
        finally:
            del self._open[scope]
        if sock is None:
            return
        if self.sock is None:
            self.sock, self.winner = sock, number
            others.cancel()
        else:  # both answered in one turn of the event loop
            sock.close()


def _usefulness(failure: tuple[Address, OSError]) -> int:
    """Return 0 for "no IPv6 on this machine", 1 for silence, 2 for an answer."""
    (family, _), error = failure
    if family == socket.AF_INET6 and error.errno in NO_IPV6:
        return 0
    return 1 if error.errno == errno.ETIMEDOUT else 2
