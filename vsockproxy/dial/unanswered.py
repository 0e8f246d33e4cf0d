"""Keep the sockets of dials that were given up before the VMM answered CONNECT.

Owns: `Unanswered`, one for each run of trio: the sockets, bounded in number and time.

A VMM may still answer, and vhost-device-vsock 0.3.0 panics when it writes its OK to a closed
socket: its guest has no vsock until it is restarted. A socket is therefore closed after the answer
or the VMM's close. Those that are left when the run ends are closed then.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

import trio

from vsockproxy.per_trio_run import PerRun

_MOST: Final = 256  # sockets; a quarter of the connections that a VMM may have (1023)
_LATE: Final = 2.0  # seconds for late answers at a command's end; arbitrary
_LONGEST: Final = 60.0  # seconds; a guest that boots has loaded its vsock driver by then


class Unanswered:
    """The sockets of given-up dials; `len` is their number."""

    def __init__(self) -> None:
        self._waits: dict[trio.CancelScope, None] = {}  # the oldest first
        self._closed = trio.Event()

    def __len__(self) -> int:
        return len(self._waits)

    def keep(
        self, sock: socket.socket, answer: Callable[[socket.socket], Awaitable[object]]
    ) -> None:
        """Take over the descriptor of a socket, and close it after its answer.

        ``answer`` returns or raises once the answer or an end has come.
        Beyond the bound, the oldest socket is closed.
        """
        if len(self._waits) >= _MOST:
            oldest = next(iter(self._waits))
            del self._waits[oldest]
            oldest.cancel()
        scope = trio.CancelScope(deadline=trio.current_time() + _LONGEST)
        self._waits[scope] = None
        kept = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, sock.detach())
        # No task of the dial's nursery: that one is ending.
        trio.lowlevel.spawn_system_task(self._wait, kept, answer, scope, name="unanswered dial")

    async def settle(self, seconds: float) -> None:
        """Wait until no socket is kept, for a bounded time: a command does so before it ends."""
        with trio.move_on_after(seconds):
            while self._waits:
                await self._closed.wait()

    async def _wait(
        self,
        sock: socket.socket,
        answer: Callable[[socket.socket], Awaitable[object]],
        scope: trio.CancelScope,
    ) -> None:
        try:
            # An exception of a system task would end the run.
            with scope, sock, suppress(Exception):
                await answer(sock)
        finally:
            self._waits.pop(scope, None)
            self._closed.set()
            self._closed = trio.Event()


UNANSWERED: Final = PerRun(Unanswered)
"""The kept sockets of this run of trio."""


async def await_late_answers() -> None:
    """Wait for the VMMs whose dials were given up, a bounded time; call it at a command's end."""
    with trio.CancelScope(shield=True):
        await UNANSWERED.get().settle(_LATE)
