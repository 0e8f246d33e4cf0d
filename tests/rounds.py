"""How long a round of the event loop takes: what one task computes, all others wait for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import thread_time

import trio

BOUND = 0.02
"""Seconds of a round that a test allows; the code aims at 0.005, and garbage collection adds."""


class Rounds(trio.abc.Instrument):
    """The longest round so far, in seconds of this thread's processor time.

    Processor time, so that a busy machine fails no test.
    """

    def __init__(self) -> None:
        self.longest = 0.0
        self._began: float | None = None

    def after_io_wait(self, timeout: float) -> None:
        """Begin a round."""
        self._began = thread_time()

    def before_io_wait(self, timeout: float) -> None:
        """End a round."""
        if self._began is not None:
            self.longest = max(self.longest, thread_time() - self._began)


@contextmanager
def rounds() -> Iterator[Rounds]:
    """Yield the rounds of the running loop from now on."""
    instrument = Rounds()
    trio.lowlevel.add_instrument(instrument)
    try:
        yield instrument
    finally:
        trio.lowlevel.remove_instrument(instrument)
