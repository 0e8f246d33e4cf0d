"""The clients of a route that wait for a target, in the order in which they came.

Owns: `WaitingRoom`, and telling that a client has left although its bytes are unread. Dials
nothing: `targets` brings a socket for whoever is next.
"""

from __future__ import annotations

import select
import socket
from typing import Final, Literal, NamedTuple

import trio

from vsockproxy.address.endpoint import AF_VSOCK
from vsockproxy.dial.target import Target
from vsockproxy.errors import DialError

_LOOK: Final = 0.1  # seconds between two looks at who has left
_RDHUP: Final = getattr(select, "POLLRDHUP", 0)  # Linux's; elsewhere POLLHUP says less


class Reached(NamedTuple):
    """A target that answered, for the client that is next."""

    sock: socket.socket
    target: Target
    vmm_port: int | None


Outcome = Reached | DialError | Literal["left", "timeout"]
"""Why a client waits no more: there is a target, there will be none, it left, time is over."""


class Waiter:
    """One client that waits, until it is called for ``outcome``."""

    __slots__ = ("called", "client", "outcome")

    def __init__(self, client: socket.socket) -> None:
        self.client = client
        self.called = trio.Event()
        self.outcome: Outcome = "timeout"

    def call(self, outcome: Outcome) -> None:
        """Have it go on; it has left its room already."""
        self.outcome = outcome
        self.called.set()


class WaitingRoom:
    """Who waits; its length is how many.

    Attributes:
      is_watched: whether `watch` runs, or will; whoever starts it says so.
    """

    def __init__(self) -> None:
        self._waiters: dict[int, Waiter] = {}
        self._poll = select.poll()
        self.is_watched = False

    def __len__(self) -> int:
        return len(self._waiters)

    def enter(self, client: socket.socket) -> Waiter:
        """Let a client wait, behind the others; `wait` must follow, without a checkpoint."""
        waiter = self._waiters[client.fileno()] = Waiter(client)
        self._poll.register(client, _RDHUP)
        return waiter

    async def wait(self, waiter: Waiter, deadline: float) -> Outcome:
        """What becomes of the client, at ``deadline`` at the latest.

        ``deadline`` is in trio's time.  Cancelled, a socket that it was to have is closed.
        """
        try:
            with trio.CancelScope(deadline=deadline):
                await waiter.called.wait()
        except BaseException:
            if isinstance(waiter.outcome, Reached):
                waiter.outcome.sock.close()
            raise
        finally:
            if not waiter.called.is_set():
                self._take(waiter.client.fileno())
        return waiter.outcome

    def hand_over(self, reached: Reached) -> None:
        """Give a target to the client that is next, or close it if nobody waits any more."""
        if self._waiters:
            self._take(next(iter(self._waiters))).call(reached)
        else:
            reached.sock.close()

    def dismiss(self, error: DialError) -> None:
        """Tell everybody that there is nothing to wait for."""
        for number in list(self._waiters):
            self._take(number).call(error.again())

    async def watch(self) -> None:
        """Call those who leave, until nobody waits."""
        while self._waiters:
            for number, events in self._poll.poll(0):
                if has_left(self._waiters[number].client, events):
                    self._take(number).call("left")
            await trio.sleep(_LOOK)
        self.is_watched = False

    def _take(self, number: int) -> Waiter:
        self._poll.unregister(number)
        return self._waiters.pop(number)


def has_left(client: socket.socket, events: int) -> bool:
    """Whether a client of which poll(2) says ``events`` takes no answer any more.

    No byte of it is read. A half-close is no leaving where it can be told from a close: a
    Unix peer that closes shows POLLHUP, and a vsock's takes nothing more. A TCP peer that
    closes shows the same as one that half-closes; it has left if it has never said a word.
    """
    if events & ~_RDHUP:
        return True
    try:
        if client.family == AF_VSOCK:
            client.send(b"", socket.MSG_DONTWAIT)
            return False
        if client.family == socket.AF_UNIX:
            return False
        return not client.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True
