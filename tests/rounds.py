"""How long a round of the event loop takes: what one task computes, all others wait for.

Processor time, so that a busy machine fails no test; and one of three attempts, because a virtual
machine counts what its host takes away as processor time, too.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from time import thread_time
from typing import ParamSpec

import trio

BOUND = 0.02
"""Seconds of a round that a test allows; the code aims at 0.005, and garbage collection adds."""

Parameters = ParamSpec("Parameters")
Test = Callable[Parameters, Awaitable[None]]


class LongRoundError(AssertionError):
    """A round took too long."""


class _Rounds(trio.abc.Instrument):
    """The longest round so far, in seconds of this thread's processor time."""

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
def short_rounds() -> Iterator[None]:
    """Raise `LongRoundError` if a round of the running loop is too long, from now on."""
    seen = _Rounds()
    trio.lowlevel.add_instrument(seen)
    try:
        yield
    finally:
        trio.lowlevel.remove_instrument(seen)
    if seen.longest >= BOUND:
        raise LongRoundError(f"a round took {seen.longest} s, and less than {BOUND} is allowed")


def in_one_of_three(test: Test[Parameters]) -> Test[Parameters]:
    """Run a test with `short_rounds` again where a round was too long, twice at most."""

    @wraps(test)
    async def repeated(*args: Parameters.args, **kwargs: Parameters.kwargs) -> None:
        for _ in range(2):
            try:
                await test(*args, **kwargs)
            except* LongRoundError:
                pass
            else:
                return
        await test(*args, **kwargs)

    return repeated
