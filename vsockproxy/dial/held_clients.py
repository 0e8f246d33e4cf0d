"""The held clients of a route: accepted, and kept until a target answers.

Owns: `HeldClients`, in the order of their arrival, and the test whether a client has left
although its bytes are unread.  Dials nothing: `selection` brings a connected socket for the
client that was held longest.
"""

from __future__ import annotations

import select
import socket
from typing import Final, Literal, NamedTuple

import trio

from vsockproxy.address.endpoint import AF_VSOCK
from vsockproxy.dial.target import Dialer
from vsockproxy.errors import DialError

MOST_HELD: Final = 1000
"""Held clients of a route."""

_POLL_PAUSE: Final = 0.1  # seconds between two looks for clients that have left
_RDHUP: Final = getattr(select, "POLLRDHUP", 0)  # Linux only; elsewhere POLLHUP tells less


class Reached(NamedTuple):
    """A target that answered; the socket belongs to the client that receives it."""

    sock: socket.socket
    dialer: Dialer
    vmm_port: int | None


Outcome = Reached | DialError | Literal["left", "timeout"]
"""How holding ended: a target answered, none will, the client left, or its time is over."""


class HeldClient:
    """One held client, until `release` ends that."""

    __slots__ = ("outcome", "released", "sock")

    def __init__(self, descriptor: int) -> None:
        """Borrow the client's descriptor until `release`."""
        self.sock = socket.socket(fileno=descriptor)
        self.released = trio.Event()
        self.outcome: Outcome = "timeout"

    def release(self, outcome: Outcome) -> None:
        """End the holding; the descriptor is its owner's alone again."""
        self.outcome = outcome
        self.sock.detach()
        self.released.set()


class HeldClients:
    """The held clients of one route; `len` is their number."""

    def __init__(self) -> None:
        self._clients: dict[int, HeldClient] = {}  # by descriptor, in the order of arrival
        self._poll = select.poll()

    def __len__(self) -> int:
        return len(self._clients)

    def add(self, descriptor: int) -> HeldClient:
        """Hold a client behind the others; call `wait` next, without a checkpoint between."""
        client = self._clients[descriptor] = HeldClient(descriptor)
        self._poll.register(descriptor, _RDHUP)
        return client

    async def wait(self, client: HeldClient, deadline: float) -> Outcome:
        """Return how holding the client ended, at ``deadline`` in trio's time at the latest.

        Cancelled, it closes a socket that the client was about to receive.
        """
        try:
            with trio.CancelScope(deadline=deadline):
                await client.released.wait()
        except BaseException:
            if isinstance(client.outcome, Reached):
                client.outcome.sock.close()
            raise
        finally:
            if not client.released.is_set():
                self._remove(client.sock.fileno()).release("timeout")
        return client.outcome

    def hand_over(self, reached: Reached) -> None:
        """Give a connected socket to the client held longest; close it if none is held."""
        if self._clients:
            self._remove(next(iter(self._clients))).release(reached)
        else:
            reached.sock.close()

    def dismiss(self, error: DialError) -> None:
        """Release every client: no target will answer."""
        for descriptor in list(self._clients):
            self._remove(descriptor).release(error.with_context(""))

    async def watch(self) -> None:
        """Release clients that go away, for as long as any is held."""
        while self._clients:
            for descriptor, events in self._poll.poll(0):
                if has_left(self._clients[descriptor].sock, events):
                    self._remove(descriptor).release("left")
            await trio.sleep(_POLL_PAUSE)

    def _remove(self, descriptor: int) -> HeldClient:
        self._poll.unregister(descriptor)
        return self._clients.pop(descriptor)


def has_left(client: socket.socket, events: int) -> bool:
    """Return whether a client for which poll(2) reports ``events`` accepts no answer any more.

    It reads no byte.  A half-close counts as leaving only where it cannot be told from a close:
    a Unix peer that closes shows POLLHUP, and a send to a closed vsock fails.  A closing TCP
    peer shows the same as one that half-closes; it has left if it never sent a byte.
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
